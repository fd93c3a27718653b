"""`python -m rto_fast.credit --run runs/quickstart`: which tokens DPO rewards, and whether those are the right ones.

Shows the token rewards of preference pairs in the terminal, measures them where wrong tokens are known, and writes
heatmaps.json, credit.html (open it in a browser) and credit.json. A mistake is one line on stderr and exit code 2.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rto_fast import cli
from rto_fast.credit.options import Watch
from rto_fast.credit.page import page
from rto_fast.credit.terminal import terminal
from rto_fast.evaluate.heatmap import Heatmap, scale_of, to_json
from rto_fast.files.digests import write_recorded
from rto_fast.files.disk import write_whole


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    return cli.run(
        lambda words: watch(cli.parse(Watch, words, "python -m rto_fast.credit")), args, "Nothing was written."
    )


def watch(options: Watch) -> dict[str, Any]:
    """Show, measure, write; returns what credit.json holds."""
    from rto_fast.credit.source import open_source
    from rto_fast.credit.swaps import rank_corrupted
    from rto_fast.evaluate.token_rewards import pair_heatmaps

    options.check()
    source = open_source(options)
    scorer, oracle = source.scorer, source.oracle
    figures: dict[str, Any] = {"beta": scorer.beta, "dpo": source.dpo_path, "reference": source.reference_path}
    lines: dict[str, str] = {}
    ranking, ranks, maps = dict[str, Any](), dict[str, str](), list[Heatmap]()
    with source.run.precision():
        print("reward = {beta:g} log(pi_dpo/pi_ref), dpo {dpo}, reference {reference}\n".format(**figures))
        if (corrupted := source.corrupted(options.pairs, options.corrupted, options.seed)) is not None:
            ranking["corrupted"], ranks, maps = rank_corrupted(scorer, corrupted, options.examples)
        if options.pairs is None or not maps:
            pairs = source.pairs(options.pairs)
            if beyond := [n for n in options.rows if n > len(pairs)]:
                raise ValueError(f"rows: there are {len(pairs)} pairs, got {beyond[0]}")
            shown = [pairs[n - 1] for n in options.rows]
            maps = pair_heatmaps(scorer, shown, names=[f"pair {n}" for n in options.rows], oracle=oracle) + maps
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        scale = scale_of(maps)
        for heatmap in maps:
            print(terminal(heatmap, width, scale=scale) + "\n")
        if oracle is not None and options.answers:
            figures["credit_auc"], lines["AUC against the oracle"] = source.oracle_auc(oracle, options.answers)
    figures, lines = figures | ranking, lines | ranks
    for name, text in lines.items():
        print(f"{name}: {text}")
    folder = Path(options.output or options.run or "credit").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_recorded(folder / "heatmaps.json", to_json(maps))
    write_whole(folder / "credit.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in lines.items())
    models = f"<p>{scorer.beta:g} log(&pi;<sub>dpo</sub>/&pi;<sub>ref</sub>) of every token, in nats.</p>"
    html = page(maps, title="Which tokens DPO credits and blames", before=f"{models}<table>{rows}</table>")
    write_whole(folder / "credit.html", html)
    print(f"written: {folder / 'heatmaps.json'}, {folder / 'credit.html'}, {folder / 'credit.json'}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
