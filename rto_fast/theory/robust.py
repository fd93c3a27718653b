"""Variant B.1 of Zhong et al. (arXiv:2404.18922): the policy that is best under the worst reward that the data allow.

    pi_hat = argmax_pi min_{theta in Theta} E_{d^pi}[phi]^T theta - beta E_{d^pi} KL(pi || pi_ref)            (eq. B.1)
    Theta = {|theta| <= B, |theta - theta_MLE|_Sigma <= rho}
    SubOpt(pi_hat) <= 2 rho |E_{d*} phi|_{Sigma^-1}                                                      (Theorem B.1)

The objective is linear in theta and concave in the occupancy measure, Theta is convex and compact, so the two may be
swapped: pi_hat is the soft optimal policy of the theta in Theta whose best value is lowest. On a token tree that value
is beta log sum_y pi_ref(y) exp(Phi(y)^T theta / beta), Phi(y) = sum_h phi: convex in K variables, with gradient E phi
and Hessian Cov(Phi) / beta. A log-barrier and Newton steps find it. The answer is certified, however it was found: the
value of theta is an upper bound of the game, the worst case of its policy a lower one, the difference a duality gap.
"""

import math
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from rto_fast.theory.check import Check
from rto_fast.theory.linear_reward import Problem, radius
from rto_fast.theory.pessimism import DELTA, RIDGE, SIZES, Draw, bounded, draws, problems, sub_optimality, widths
from rto_fast.theory.soft_q import expect
from rto_fast.theory.token_tree import Conditionals, sequence_logprobs

GAP = 1e-9
"""The largest duality gap that counts as solved."""


@dataclass(frozen=True)
class ConfidenceSet:
    """Theta: `center` (K,) = theta_MLE, `covariance` (K, K) = Sigma_D, `rho`, and the ball's `norm` B."""

    center: Tensor
    covariance: Tensor
    rho: float
    norm: float

    def excess(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """|theta|^2 - B^2 and |theta - theta_MLE|^2_Sigma - rho^2: both <= 0 inside."""
        off = theta - self.center
        return theta @ theta - self.norm**2, off @ self.covariance @ off - self.rho**2

    def lowest(self, direction: Tensor) -> Tensor:
        """(): a lower bound of min_{theta in Theta} direction^T theta, which is tight.

        Every mixture w (|theta|^2 - B^2) + (1 - w)(|theta - center|^2_Sigma - rho^2) <= 0 is an ellipsoid around
        Theta with its minimum in closed form. The best w makes the bound the minimum (strong duality); it is
        bisected, and any w gives a valid bound.
        """
        low, high = 0.0, 1.0
        best = torch.maximum(*(self._ellipsoid(direction, w)[0] for w in (low, high)))
        for _ in range(60):
            w = (low + high) / 2
            bound, point = self._ellipsoid(direction, w)
            best = torch.maximum(best, bound)
            ball, ellipsoid = self.excess(point)
            low, high = (w, high) if ball > ellipsoid else (low, w)
        return best

    def _ellipsoid(self, direction: Tensor, w: float) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(direction), dtype=direction.dtype)
        shape = w * eye + (1 - w) * self.covariance
        pull = (1 - w) * self.covariance @ self.center
        middle = torch.linalg.solve(shape, pull)
        squared = w * self.norm**2 + (1 - w) * (self.rho**2 - self.center @ self.covariance @ self.center)
        squared = (squared + pull @ middle).clamp(min=0)
        step = torch.linalg.solve(shape, direction)
        length = (direction @ step).sqrt()
        bound = direction @ middle - squared.sqrt() * length
        return bound, middle - squared.sqrt() * step / length.clamp(min=1e-300)


@dataclass(frozen=True)
class Robust:
    """`policy` with its `worst` value over Theta, and how far a better one could lie above: `gap` >= 0."""

    policy: list[Tensor]
    theta: Tensor
    worst: float
    gap: float


def worst_value(problem: Problem, policy: Conditionals, allowed: ConfidenceSet) -> float:
    """min_{theta in Theta} E_{d^pi}[phi]^T theta - beta E_{d^pi} KL(pi || pi_ref), the objective of eq. B.1."""
    direction = mean_features(problem, policy)
    apart = [p - r for p, r in zip(policy, problem.ref, strict=True)]
    return float(allowed.lowest(direction) - problem.beta * expect(policy, apart))


def mean_features(problem: Problem, policy: Conditionals) -> Tensor:
    """(K,): E_{(s, a) ~ d^pi} phi(s, a)."""
    return torch.stack([expect(policy, [f[..., k] for f in problem.features]) for k in range(len(problem.theta))])


def variant_b1(problem: Problem, allowed: ConfidenceSet) -> Robust:
    """Solve eq. B.1. ValueError where Theta has no interior (rho or B not positive, theta_MLE outside of the ball)."""
    if not (allowed.rho > 0 and allowed.norm > 0 and allowed.center.norm() <= allowed.norm * (1 + 1e-9)):
        raise ValueError(
            "variant_b1: Theta needs rho > 0, B > 0 and |theta_MLE| <= B, got "
            f"{allowed.rho}, {allowed.norm} and {allowed.center.norm().item():.6g}"
        )
    answers, ref = problem.answers(), sequence_logprobs(problem.ref)
    # strictly inside of both: theta_MLE pulled towards 0 by at most half of what the ellipsoid allows
    length = float((allowed.center @ allowed.covariance @ allowed.center).sqrt())
    theta, precision = allowed.center * (1 - min(0.5, 0.5 * allowed.rho / max(length, 1e-300))), 1.0
    while precision < 1e13:
        theta = _centre(answers, ref, problem.beta, allowed, theta, precision)
        precision *= 30
    policy = problem.plan(theta)
    best = problem.beta * (ref + answers @ theta / problem.beta).logsumexp(0)
    worst = worst_value(problem, policy, allowed)
    return Robust(policy, theta, worst, float(best) - worst)


def _centre(
    answers: Tensor, ref: Tensor, beta: float, allowed: ConfidenceSet, theta: Tensor, precision: float
) -> Tensor:
    """Newton steps on precision * V*(theta) - log(-ball) - log(-ellipsoid), from a point inside."""
    eye = torch.eye(len(theta), dtype=theta.dtype)

    def merit(point: Tensor) -> Tensor:
        ball, ellipsoid = allowed.excess(point)
        if ball >= 0 or ellipsoid >= 0:
            return torch.tensor(math.inf, dtype=point.dtype)
        value = beta * (ref + answers @ point / beta).logsumexp(0)
        return precision * value - (-ball).log() - (-ellipsoid).log()

    for _ in range(50):
        ball, ellipsoid = allowed.excess(theta)
        ball_slope, ellipsoid_slope = 2 * theta, 2 * allowed.covariance @ (theta - allowed.center)
        weight = (ref + answers @ theta / beta).softmax(0)
        mean = weight @ answers
        spread = (answers - mean) * weight[:, None].sqrt()
        gradient = precision * mean - ball_slope / ball - ellipsoid_slope / ellipsoid
        hessian = precision * spread.T @ spread / beta - 2 * eye / ball - 2 * allowed.covariance / ellipsoid
        hessian += torch.outer(ball_slope, ball_slope) / ball**2
        hessian += torch.outer(ellipsoid_slope, ellipsoid_slope) / ellipsoid**2
        step = torch.linalg.solve(hessian, gradient)
        decrement, size, here = float(gradient @ step), 1.0, merit(theta)
        if decrement < 1e-12:
            break
        while size > 1e-12 and merit(theta - size * step) > here - 0.1 * size * decrement:
            size /= 2
        if size <= 1e-12:
            break
        theta = theta - size * step
    return theta


Solved = tuple[Draw, ConfidenceSet, Robust, tuple[float, float, float]]
"""A draw, the set that its solution is robust to, the solution, and its `pessimism.Figures`."""


def theorem_b_1(seed: int, count: int) -> list[Check]:
    proved, smallest = [], []
    for problem, g in problems(seed, max(3, count // 5)):
        rho = radius(problem, RIDGE, DELTA)
        run = draws(problem, SIZES, g)
        proved.append([_solve(draw, rho) for draw in run])
        smallest.append([_solve(draw, draw.error) for draw in run])
    gaps = [result.gap for _, _, result, _ in chain(*proved, *smallest)]
    return [
        Check(
            "eq. B.1 solved: duality gap of every run",
            f"within {GAP:.0e}",
            f"{min(gaps):.0e} to {max(gaps):.0e}",
            -GAP <= min(gaps) and max(gaps) <= GAP,
        ),
        _ordered([*chain(*proved, *smallest)]),
        *_bounded("rho proved", proved, 0.05),
        *_bounded("rho smallest", smallest, 0.15),
        _sharper([draw for draw, *_ in chain(*proved)]),
    ]


def _solve(draw: Draw, rho: float) -> Solved:
    problem, allowed = draw.problem, ConfidenceSet(draw.theta, draw.covariance, rho, draw.problem.norm)
    result, bound = variant_b1(problem, allowed), 2 * rho * _reach(draw)
    return draw, allowed, result, (sub_optimality(problem, result.policy), bound, bound)


def _reach(draw: Draw) -> float:
    """|E_{d*} phi|_{Sigma^-1}."""
    seen = mean_features(draw.problem, draw.problem.plan(draw.problem.theta))
    return float((seen @ torch.linalg.solve(draw.covariance, seen)).sqrt())


def _ordered(solved: list[Solved]) -> Check:
    """V_hat^{pi*} <= V_hat^{pi_hat} <= V^{pi_hat}: the two steps of the proof."""
    steps = []
    for draw, allowed, result, _ in solved:
        problem = draw.problem
        true = float(problem.value(result.policy, problem.reward(problem.theta)))
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
    figures = [[figures for *_, figures in run] for run in runs]
    return bounded(f"Theorem B.1, {name}", "right-hand side", figures, tolerance, below=0, rounding=GAP)


def _sharper(fitted: list[Draw]) -> Check:
    """|E phi| <= E |phi|: at equal rho B.1's right-hand side is below the first term of Theorem 4.2."""
    ratios = []
    for draw in fitted:
        problem = draw.problem
        ratios.append(_reach(draw) / float(expect(problem.plan(problem.theta), widths(problem, draw.covariance))))
    return Check(
        "Theorem B.1 / first term of Theorem 4.2, at equal rho",
        "<= 1",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        max(ratios) <= 1,
    )
