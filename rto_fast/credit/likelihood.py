"""`python -m rto_fast.credit.likelihood --run runs/quickstart`: what DPO does to the likelihood of its own data.

Section 5.4 of Rafailov et al. 2024 (arXiv:2404.12358), measured. Equation 16 says of any policy pi

    E_{y ~ pi_ref} [beta log pi(y|x)/pi_ref(y|x)] = -beta KL(pi_ref || pi) <= 0

so that the implicit reward of pi_ref's own answers must fall as soon as DPO moves away from pi_ref. Whether that of the
chosen answers falls depends on whose answers they are. Three starts, the same DPO from each:

    chosen          SFT on the chosen answers first (pi_ref^w in the paper): chosen answers are like samples of pi_ref,
                    so their mean reward is what eq. 16 says, and their likelihood falls
    demonstrations  SFT on answers of which the pairs are typical, chosen and rejected alike: eq. 16 speaks of both
                    together, the chosen ones lie above it and the rejected ones below it
    none            no SFT: pi_ref would say something else than either, eq. 16 says nothing about the pairs, and the
                    rewards may rise above zero, as in the paper's Figure 3

Per step: the mean implicit reward of the chosen and the rejected answers; that of answers sampled from pi_ref (left
side of eq. 16); and -beta times the KL along these samples, exact over every next token (right side). Left and right
are two estimators of one number: their difference, paired by answer, has mean zero. DPO starts at pi_ref, so a reward
over beta is the change of the log-likelihood. Rewards are per answer, in nats times beta.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rto_fast import cli
from rto_fast.credit.options import Follow, Watch
from rto_fast.files.disk import write_whole


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    return cli.run(
        lambda words: follow(cli.parse(Follow, words, "python -m rto_fast.credit.likelihood")),
        args,
        "Nothing was written, and the run is as it was.",
    )


def follow(options: Follow) -> dict[str, Any]:
    """Train, measure, show, write; returns what likelihood.json holds."""
    from rto_fast.credit.chart import panels
    from rto_fast.credit.follow import STARTS, dpo_from, start_model, starts_of
    from rto_fast.credit.page import page
    from rto_fast.credit.source import open_source

    for name, least in (("steps", 1), ("answers", 2), ("points", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"{name}: must be at least {least}, got {getattr(options, name)}")
    if unknown := [s for s in options.starts if s not in STARTS]:
        raise ValueError(f"starts: must be of {', '.join(STARTS)}, got {unknown[0]!r}")
    source = open_source(Watch(options.run or ".", device=options.device, trust_remote_code=options.trust_remote_code))
    config = source.run.config
    seed = config.seed if options.seed is None else options.seed
    curves = {}
    for start in starts_of(source, options.starts):
        bar = tqdm(desc=start, unit="step", leave=False, disable=not sys.stderr.isatty())
        with bar, source.run.precision():
            model = start_model(source, start, seed, bar.update)
            curve = dpo_from(model, source, options, seed, bar.update)
        curves[start] = curve
        print("\n".join(curve.lines(STARTS[start])) + "\n", flush=True)
    figures = {"beta": config.dpo.beta, "steps": options.steps, "curves": {k: c.plain() for k, c in curves.items()}}
    folder = Path(options.output or options.run).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "likelihood.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    chart = panels({STARTS[k]: c.points for k, c in curves.items()}, config.dpo.beta)
    html = page([], title="Implicit reward of chosen and rejected answers during DPO", before=chart)
    write_whole(folder / "likelihood.html", html)
    print(f"written: {folder / 'likelihood.html'}, {folder / 'likelihood.json'}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
