"""Variant B.1 and Theorem B.1 on the problems of check_learning."""

from itertools import chain

import torch

from rto_fast.theory.check import Check
from rto_fast.theory.check_learning import DELTA, RIDGE, SIZES, Draw, draws, mean, numbers, problems, slope
from rto_fast.theory.linear_reward import radius
from rto_fast.theory.pessimism import sub_optimality, widths
from rto_fast.theory.robust import ConfidenceSet, Robust, mean_features, variant_b1, worst_value
from rto_fast.theory.soft_q import expect, policy_q

GAP = 1e-9
"""The largest duality gap that counts as solved."""
Solved = tuple[Robust, float, float, ConfidenceSet]
"""A solution, its SubOpt, the theorem's right-hand side and the set it is robust to."""


def theorem_b_1(seed: int, count: int) -> list[Check]:
    fitted, proved, smallest = [], [], []
    for problem, g in problems(seed, max(3, count // 5)):
        rho = radius(problem, RIDGE, DELTA)
        run = draws(problem, SIZES, g)
        fitted += [run]
        proved.append([_solve(draw, rho) for draw in run])
        smallest.append([_solve(draw, draw.error) for draw in run])
    both = [*zip(fitted, proved, strict=True), *zip(fitted, smallest, strict=True)]
    gaps = [result[0].gap for _, run in both for result in run]
    return [
        Check(
            "eq. B.1 solved: duality gap of every run",
            f"within {GAP:.0e}",
            f"{min(gaps):.0e} to {max(gaps):.0e}",
            -GAP <= min(gaps) and max(gaps) <= GAP,
        ),
        _ordered(both),
        *_bounded("rho proved", proved, 0.05),
        *_bounded("rho smallest", smallest, 0.15),
        _sharper(fitted),
    ]


def _solve(draw: Draw, rho: float) -> Solved:
    problem, allowed = draw.problem, ConfidenceSet(draw.theta, draw.covariance, rho, draw.problem.norm)
    result = variant_b1(problem, allowed)
    return result, sub_optimality(problem, result.policy), 2 * rho * _reach(draw), allowed


def _reach(draw: Draw) -> float:
    """|E_{d*} phi|_{Sigma^-1}."""
    seen = mean_features(draw.problem, draw.problem.plan(draw.problem.theta))
    return float((seen @ torch.linalg.solve(draw.covariance, seen)).sqrt())


def _ordered(both: list[tuple[list[Draw], list[Solved]]]) -> Check:
    """V_hat^{pi*} <= V_hat^{pi_hat} <= V^{pi_hat}: the two steps of the proof."""
    steps = []
    for run, results in both:
        for draw, (result, _, _, allowed) in zip(run, results, strict=True):
            problem = draw.problem
            true = float(policy_q(result.policy, problem.reward(problem.theta), problem.ref, problem.beta)[1][0])
            best = worst_value(problem, problem.plan(problem.theta), allowed)
            steps.append(min(result.worst - best, true - result.worst))
    return Check(
        "eq. B.2, B.3: worst case of pi* <= worst case of pi_hat <= value of pi_hat",
        "steps >= 0",
        f"min {min(steps):.1e}",
        min(steps) >= -GAP,
    )


def _bounded(name: str, runs: list[list[Solved]], tolerance: float) -> list[Check]:
    """With the proved rho Theta is the whole ball until |D| = 2^14, and SubOpt stands still so long."""
    lost, bound = mean([[r[1] for r in run] for run in runs]), mean([[r[2] for r in run] for run in runs])
    kept = all(r[1] <= r[2] + GAP for run in runs for r in run)
    return [
        Check(f"Theorem B.1, {name}: SubOpt at |D| = 2^6, 2^10, 2^14, 2^18", numbers(bound), numbers(lost), kept),
        Check(
            "... log-log slope of its right-hand side; of SubOpt from 2^12 on",
            f"-0.5 +- {tolerance}; below 0",
            f"{slope(bound):.2f}; {slope(lost, 3):.2f}",
            abs(slope(bound) + 0.5) < tolerance and slope(lost, 3) < 0,
        ),
    ]


def _sharper(fitted: list[list[Draw]]) -> Check:
    """|E phi| <= E |phi|: at equal rho B.1's right-hand side is below the first term of Theorem 4.2."""
    ratios = []
    for draw in chain(*fitted):
        problem = draw.problem
        ratios.append(_reach(draw) / float(expect(problem.plan(problem.theta), widths(problem, draw.covariance))))
    return Check(
        "Theorem B.1 / first term of Theorem 4.2, at equal rho",
        "<= 1",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        max(ratios) <= 1,
    )
