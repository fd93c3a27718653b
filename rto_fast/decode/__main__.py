"""`python -m rto_fast.decode --run runs/quickstart`: what decoding from the implicit reward gains, and where it breaks.

A mistake is one line on stderr and exit code 2.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rto_fast import cli
from rto_fast.decode.options import Options
from rto_fast.files.disk import write_whole


def decode(options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Decode in every way asked for; returns, and writes, what decode.json holds."""
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from rto_fast.decode.experiments import Lab, num_rows
    from rto_fast.decode.source import open_source
    from rto_fast.decode.tables import TABLES, as_text, over_optimised

    output = Path(options.output or Path(options.run or ".", "decode.json")).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"output: {str(output)!r} must be a file in a folder that exists")
    started = time.perf_counter()
    disable_progress_bar()
    source = open_source(options)
    judged = source.judge.replace("_", " ")
    if source.judge == "implicit_reward":
        judged += ", the very thing that is searched: it shows how far the search gets, not whether answers are good"
    say(f"{len(source.prompts)} prompts, mean +- 95 % interval; judged by {judged}")

    quiet = {} if sys.stderr.isatty() else {"mininterval": 15.0}
    total = num_rows(options, len(source.prompts))
    results: dict[str, Any] = {"judge": source.judge, "prompts": len(source.prompts), "beta": source.beta}
    results["sample_prompts"] = source.texts(source.prompts[: options.samples])
    with source.run.precision(), tqdm(total=total, desc="decode", unit="row", dynamic_ncols=True, **quiet) as bar:
        lab = Lab(source, options, bar.update)
        results["baselines"] = {name: baseline.summary() for name, baseline in lab.baselines.items()}
        results["over_optimised"] = {}
        for table in TABLES:
            rows = results[table.key] = list(getattr(lab, table.key)())
            found = over_optimised(rows, table.family, table.setting, source.judge)
            results["over_optimised"][table.key] = found
            with bar.external_write_mode(file=sys.stdout):
                for line in as_text(table, rows, found, source.judge):
                    say(line)
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_whole(output, json.dumps(results, indent=2, allow_nan=False) + "\n")
    say(f"\nFinished in {results['seconds']:.0f} s. Figures: {output}")
    return results


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    return cli.run(
        lambda words: decode(cli.parse(Options, words, "python -m rto_fast.decode")), args, "Nothing was written."
    )


if __name__ == "__main__":
    sys.exit(main())
