"""`python -m rto_fast.theory`: every theorem that the method stands on, computed and compared with what it claims.

Each line is a claim, what it allows, what was measured, and a verdict: `holds`, `FAILS`, or `not as printed` where the
paper's own sentence is wrong and the counterexample is shown. The exit status is 1 when a line fails.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from rto_fast.theory import pessimism, planning, robust, search, soft_q
from rto_fast.theory.check import Check

PAPERS = "Z: Zhong et al., arXiv:2404.18922 (RTO).  R: Rafailov et al., arXiv:2404.12358 (From r to Q*)."
LINE = "  {:80} {:24} {:36} {}"
SECTIONS: dict[str, tuple[str, Callable[[int, int], list[Check]]]] = {
    "soft-q": ("R, Z: soft value iteration on token trees", soft_q.soft_value_iteration),
    "lemma-1": ("R Lemma 1: rewards and optimal Q-functions are one to one", soft_q.lemma_1),
    "theorem-1": ("R Theorem 1: shaping leaves policy and preferences alone", soft_q.theorem_1),
    "eq-4.3": ("Z eq. 4.3: DPO's log-ratio is a token reward", soft_q.equation_4_3),
    "eq-13": ("R eq. 13: likelihood search is reward search", soft_q.equation_13),
    "eq-5.1": ("Z eq. 5.1: dense and sparse rewards, one optimum", soft_q.equation_5_1),
    "prop-3.2": ("Z Proposition 3.2: queries with token and with sentence rewards", search.proposition_3_2),
    "prop-c.2": ("Z Proposition C.2: predetermined against autoregressive policies", planning.proposition_c_2),
    "lemma-a.1": ("Z Lemma A.1: the reward's maximum likelihood fit", pessimism.lemma_a_1),
    "thm-4.2": ("Z Theorem 4.2: Algorithm 1 with a pessimistic reward", pessimism.theorem_4_2),
    "thm-b.1": ("Z Theorem B.1: the best policy under the worst reward", robust.theorem_b_1),
}


@dataclass(frozen=True)
class Theory:
    """Check the theorems behind RTO and token-level DPO on exactly solvable problems."""

    only: tuple[Literal[*SECTIONS], ...] = ()  # type: ignore[valid-type]
    """Run these sections alone. Default: all."""
    seed: int = 0
    """Seeds every random instance."""
    instances: int = 30
    """Random instances behind each line."""


def main() -> None:
    options = tyro.cli(Theory, prog="python -m rto_fast.theory", description=__doc__)
    if options.instances < 10:
        print(f"rto_fast: error: instances must be 10 or more, got {options.instances}", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)  # small matrices: threads only wait for one another
    try:
        checks = report(options)
        print(end="", flush=True)
    except BrokenPipeError:
        # the reader (head, less) went away, and python must not complain about it while closing stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    sys.exit(any(not check.passed for check in checks))


def report(options: Theory) -> list[Check]:
    """Run the sections and print their lines."""
    started, checks = time.perf_counter(), []
    print(PAPERS + "\n\n" + LINE.format("claim", "bound", "measured", "verdict"))
    for name, (title, run) in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        print(f"\n{title}  [{name}]", flush=True)
        for check in run(options.seed, options.instances):
            checks.append(check)
            print(LINE.format(check.claim, check.bound, check.measured, check.verdict), flush=True)
    right, wrong, failed = ([check.verdict for check in checks].count(x) for x in ("holds", "not as printed", "FAILS"))
    seconds = time.perf_counter() - started
    print(f"\n{right} hold, {wrong} do not hold as printed, {failed} fail; {seconds:.0f} s")
    return checks


if __name__ == "__main__":
    main()
