"""`python -m rto_fast.theory`: every theorem that the method stands on, computed and compared with what it claims.

Each line is a claim, what it allows, what was measured, and a verdict: `holds`, `FAILS`, or `not as printed` where the
paper's own sentence is wrong and the counterexample is shown. The exit status is 1 when a line fails.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from rto_fast.theory import check_learning, check_planning, check_robust, check_search, check_soft_q
from rto_fast.theory.check import Check

Section = Literal[
    "soft-q", "lemma-1", "theorem-1", "eq-4.3", "eq-5.1", "prop-3.2", "prop-c.2", "lemma-a.1", "thm-4.2", "thm-b.1"
]
SECTIONS: dict[Section, tuple[str, Callable[[int, int], list[Check]]]] = {
    "soft-q": ("Soft value iteration on token trees", check_soft_q.soft_value_iteration),
    "lemma-1": ("Lemma 1: rewards and optimal Q-functions are one to one", check_soft_q.lemma_1),
    "theorem-1": ("Theorem 1: shaping leaves policy and preferences alone", check_soft_q.theorem_1),
    "eq-4.3": ("Equation 4.3: DPO's log-ratio is a token reward", check_soft_q.equation_4_3),
    "eq-5.1": ("Equation 5.1: dense and sparse rewards, one optimum", check_soft_q.equation_5_1),
    "prop-3.2": ("Proposition 3.2: token rewards find the best answer in fewer queries", check_search.proposition_3_2),
    "prop-c.2": ("Proposition C.2: predetermined against autoregressive policies", check_planning.proposition_c_2),
    "lemma-a.1": ("Lemma A.1: the reward's maximum likelihood fit", check_learning.lemma_a_1),
    "thm-4.2": ("Theorem 4.2: Algorithm 1 with a pessimistic reward", check_learning.theorem_4_2),
    "thm-b.1": ("Theorem B.1: the best policy under the worst reward", check_robust.theorem_b_1),
}


@dataclass(frozen=True)
class Theory:
    """Check the theorems behind RTO and token-level DPO on exactly solvable problems."""

    only: tuple[Section, ...] = ()
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
    started, checks = time.perf_counter(), []
    print(line("claim", "bound", "measured", "verdict"))
    for name, (title, run) in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        print(f"\n{title}  [{name}]")
        for check in run(options.seed, options.instances):
            checks.append(check)
            print(line(check.claim, check.bound, check.measured, check.verdict), flush=True)
    failed = [check for check in checks if not check.passed]
    wrong = sum(check.passed and not check.printed for check in checks)
    print(
        f"\n{len(checks) - len(failed) - wrong} hold, {wrong} do not hold as printed, {len(failed)} fail; "
        f"{time.perf_counter() - started:.0f} s"
    )
    sys.exit(1 if failed else 0)


def line(claim: str, bound: str, measured: str, verdict: str) -> str:
    return f"  {claim:80} {bound:24} {measured:36} {verdict}"


if __name__ == "__main__":
    main()
