"""Algorithm 1 of Zhong et al. (arXiv:2404.18922) with exact planning, and the right-hand side of its Theorem 4.2.

    r_hat(s, a) = phi(s, a)^T theta_MLE - rho |phi(s, a)|_{Sigma_D^-1}                                       (eq. 4.2)
    SubOpt(pi_hat) <= 2 rho E_{d*} |phi(s, a)|_{Sigma_D^-1} - beta E_{d*} KL(pi*(.|s) || pi_hat(.|s))    (Theorem 4.2)

d* is the visitation of pi*, SubOpt = V*(rho) - V^pi(rho) under the true reward (eq. 3.5). The theorem is deterministic
once |theta_MLE - theta*|_Sigma <= rho. Its first term falls as |D|^-1/2 only where the data's differences
sum_h phi^w - phi^l span every phi(s, a) on pi*'s way. They cannot where a combination of features is a potential
Phi(s a) - Phi(s) with equal ends, of which a constant feature is the plainest: preferences never see it (Theorem 1).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rto_fast.theory.check import Check, exact, generator
from rto_fast.theory.linear_reward import Pairs, Problem, fit, fit_gap, radius, random_problem, sample_pairs
from rto_fast.theory.soft_q import expect, optimal_policy
from rto_fast.theory.token_tree import Conditionals, sequence_logprobs

SIZES = [2**k for k in range(6, 19, 2)]
"""|D|, the number of preference pairs."""
RIDGE, DELTA = 1.0, 0.05
"""The paper's lambda and delta."""
VOCAB, DEPTH, DIM, BETA, LARGEST, NORM = 3, 4, 4, 0.1, 0.25, 1.0
"""A, H, the dimension of theta, beta, L and B: 81 answers whose rewards differ by at most 2HLB = 2."""
Figures = tuple[float, float, float]
"""SubOpt, its bound, and what of the bound is to fall as |D|^-1/2."""


def widths(problem: Problem, covariance: Tensor) -> list[Tensor]:
    """D tensors (V^d, V): |phi(s, a)|_{Sigma^-1}."""
    inverse = torch.linalg.inv(covariance)
    return [((phi @ inverse) * phi).sum(-1).clamp(min=0).sqrt() for phi in problem.features]


def pessimistic_reward(problem: Problem, theta: Tensor, covariance: Tensor, rho: float) -> list[Tensor]:
    """D tensors (V^d, V): phi^T theta - rho |phi|_{Sigma^-1} (eq. 4.2)."""
    fitted, uncertain = problem.reward(theta), widths(problem, covariance)
    return [rows - rho * width for rows, width in zip(fitted, uncertain, strict=True)]


def sub_optimality(problem: Problem, policy: Conditionals) -> float:
    """V*(rho) - V^pi(rho) = beta KL(pi || pi*) over whole answers, under the true reward (eq. 3.5)."""
    best = problem.plan(problem.theta)
    # the divergence, and not the difference of two values: it keeps its digits where the two all but agree
    logp = sequence_logprobs(policy)
    return float(problem.beta * (logp.exp() * (logp - sequence_logprobs(best))).sum())


@dataclass(frozen=True)
class Outcome:
    """One run of Algorithm 1: what it lost, the theorem's two terms, and the three of its proof (eq. A.3)."""

    lost: float
    coverage: float
    """2 rho E_{d*} |phi|_{Sigma^-1}."""
    divergence: float
    """beta E_{d*} KL(pi* || pi_hat)."""
    terms: tuple[float, float, float]
    """(i) E_{d*}[r - r_hat], (ii) E_{d_hat}[r_hat - r], (iii) V^{pi*}(r_hat) - V^{pi_hat}(r_hat)."""
    spread: float
    """The range over all answers of sum_h (r_hat - r)."""

    @property
    def bound(self) -> float:
        return self.coverage - self.divergence


def algorithm_1(problem: Problem, theta: Tensor, covariance: Tensor, rho: float) -> Outcome:
    """Plan exactly under the pessimistic reward of theta_MLE = `theta` (K,) and Sigma_D = `covariance` (K, K)."""
    best = problem.plan(problem.theta)
    pessimistic = pessimistic_reward(problem, theta, covariance, rho)
    policy = optimal_policy(pessimistic, problem.ref, problem.beta)
    error = [a - b for a, b in zip(pessimistic, problem.reward(problem.theta), strict=True)]
    whole = sequence_logprobs(error)
    apart = [b - p for b, p in zip(best, policy, strict=True)]
    ahead = problem.value(best, pessimistic) - problem.value(policy, pessimistic)
    return Outcome(
        lost=sub_optimality(problem, policy),
        coverage=2 * rho * float(expect(best, widths(problem, covariance))),
        divergence=problem.beta * float(expect(best, apart)),
        terms=(-float(expect(best, error)), float(expect(policy, error)), float(ahead)),
        spread=float(whole.max() - whole.min()),
    )


@dataclass(frozen=True)
class Draw:
    """One data set of a problem, fitted."""

    problem: Problem
    pairs: Pairs
    theta: Tensor
    covariance: Tensor

    @property
    def error(self) -> float:
        """|theta_MLE - theta*|_Sigma: the smallest rho for which Lemma A.1's event holds."""
        off = self.theta - self.problem.theta
        return float((off @ self.covariance @ off).sqrt())

    def outcome(self, rho: float) -> Outcome:
        return algorithm_1(self.problem, self.theta, self.covariance, rho)


def draws(problem: Problem, sizes: list[int], g: torch.Generator) -> list[Draw]:
    sampled = sample_pairs(problem, sizes, g)
    return [Draw(problem, pairs, fit(pairs, problem.norm), pairs.covariance(RIDGE)) for pairs in sampled]


def problems(seed: int, count: int) -> Iterator[tuple[Problem, torch.Generator]]:
    for i in range(count):
        g = generator(seed + i)
        yield random_problem(VOCAB, DEPTH, DIM, g, beta=BETA, largest=LARGEST, norm=NORM), g


def with_constant(problem: Problem) -> Problem:
    """The same tree, the last feature replaced by a constant: no preference ever shows its weight."""
    features = [
        torch.cat([phi[..., :-1], torch.full_like(phi[..., -1:], 0.5 * LARGEST)], -1) for phi in problem.features
    ]
    longest = max(float(phi.norm(dim=-1).max()) for phi in features)
    return replace(problem, features=[phi * LARGEST / longest for phi in features])


def slope(values: list[float], start: int = 0) -> float:
    """Least squares of log values on log |D|, from the size SIZES[start] on."""
    x, y = torch.tensor(SIZES[start:]).double().log(), torch.tensor(values[start:]).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def means(runs: list[list[Figures]]) -> list[list[float]]:
    """Each of the three at each size, over the runs."""
    return torch.tensor(runs, dtype=torch.float64).mean(0).T.tolist()


def numbers(values: list[float]) -> str:
    """Every other one, at |D| = 2^6, 2^10, 2^14, 2^18."""
    return " ".join(f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in values[::2])


def lemma_a_1(seed: int, count: int) -> list[Check]:
    """The constrained fit is certified, and its error is within rho in at least 1 - delta of the draws."""
    gaps, errors, units, bound = [], [], [], 0
    for problem, g in problems(seed, count):
        rho = radius(problem, RIDGE, DELTA)
        # (A.2) without its C and without its ridge term
        unit = math.sqrt(DIM * math.log(1 / DELTA) / problem.flatness())
        for _ in range(3):
            for draw in draws(problem, SIZES[:4], g):
                length = float(draw.theta.norm())
                gaps += [fit_gap(draw.pairs, draw.theta, NORM) / float(draw.pairs.counts.sum()), length - NORM]
                bound += length > NORM * (1 - 1e-9)
                errors.append(draw.error / rho)
                units.append((draw.error - RIDGE * NORM**2) / unit)
    inside = sum(e <= 1 for e in errors)
    constant = float(torch.tensor(units).quantile(1 - DELTA))
    return [
        exact(f"eq. 4.1: nats per pair below the best fit ({bound} of {len(errors)} on the ball's edge)", gaps),
        Check(
            "Lemma A.1: |theta_MLE - theta*|_Sigma <= rho, constants as in radius()",
            f">= {1 - DELTA:.0%} of {len(errors)}",
            f"{inside / len(errors):.0%}, at most {max(errors):.2f} rho",
            inside >= (1 - DELTA) * len(errors),
        ),
        Check(
            "(A.2) as printed: the least C that covers 95 % of these draws",
            "unnamed; 1 would do",
            f"{constant:.2f}",
            constant < 1,
        ),
    ]


def theorem_4_2(seed: int, count: int) -> list[Check]:
    """SubOpt against the right-hand side, with the rho of Lemma A.1 and with the smallest that its event allows."""
    proved, smallest, flat = [], [], []
    for problem, g in problems(seed, max(3, count // 5)):
        fitted = draws(problem, SIZES, g)
        rho = radius(problem, RIDGE, DELTA)
        proved.append([d.outcome(rho) for d in fitted])
        smallest.append([d.outcome(d.error) for d in fitted])
        flat.append([d.outcome(rho) for d in draws(with_constant(problem), SIZES, g)])
    return [
        *bounded("Theorem 4.2, rho proved", "first term", _figures(proved), 0.05, below=-0.5),
        *bounded("Theorem 4.2, rho smallest", "first term", _figures(smallest), 0.15, below=-0.5),
        *_proof([outcome for run in proved + smallest + flat for outcome in run]),
        _hardest(seed, 5 * count),
        _constant(_figures(flat)),
    ]


def _figures(runs: list[list[Outcome]]) -> list[list[Figures]]:
    return [[(o.lost, o.bound, o.coverage) for o in run] for run in runs]


def bounded(
    title: str, term: str, runs: list[list[Figures]], tolerance: float, below: float, rounding: float = 0.0
) -> list[Check]:
    """Whether SubOpt keeps its bound, and how fast `term` of the bound and SubOpt itself fall.

    The smallest rho differs from draw to draw, so that the slope of its bound is less sharp.
    """
    lost, bound, falling = means(runs)
    kept = all(lost <= bound + rounding for run in runs for lost, bound, _ in run)
    return [
        Check(f"{title}: SubOpt at |D| = 2^6, 2^10, 2^14, 2^18", numbers(bound), numbers(lost), kept),
        Check(
            f"... log-log slope of its {term}; of SubOpt from 2^12 on",
            f"-0.5 +- {tolerance}; below {below}",
            f"{slope(falling):.2f}; {slope(lost, 3):.2f}",
            abs(slope(falling) + 0.5) < tolerance and slope(lost, 3) < below,
        ),
    ]


def _proof(outcomes: list[Outcome]) -> list[Check]:
    """The proof's steps, and why SubOpt falls twice as fast as the theorem says."""
    quadratic = max(o.lost / (o.spread**2 / (8 * BETA)) for o in outcomes)
    return [
        exact("eq. A.3: SubOpt = (i) + (ii) + (iii)", [abs(o.lost - sum(o.terms)) for o in outcomes]),
        Check(
            "eq. A.4, A.5: (i) <= 2 rho E |phi|, (ii) <= 0",
            "ratio <= 1; <= 0",
            f"{max(o.terms[0] / o.coverage for o in outcomes):.2f}; {max(o.terms[1] for o in outcomes):.1e}",
            all(o.terms[0] <= o.coverage and o.terms[1] <= 0 for o in outcomes),
        ),
        exact("eq. A.6: (iii) = -beta E KL(pi* | pi_hat)", [abs(o.terms[2] + o.divergence) for o in outcomes]),
        Check(
            "not in the paper: SubOpt <= spread(r_hat - r)^2 / (8 beta), falling as 1 / |D|",
            "ratio <= 1",
            f"{quadratic:.2f}",
            quadratic <= 1,
        ),
    ]


def _hardest(seed: int, repeats: int) -> Check:
    """Two answers, next to no KL, a reward gap that shrinks as |D|^-1/2: there SubOpt has the theorem's rate."""
    signs = torch.tensor([[[LARGEST], [-LARGEST]]], dtype=torch.float64)
    even = [torch.full((1, 2), math.log(0.5), dtype=torch.float64)]
    lost, g = [], generator(seed)
    for size in SIZES:
        theta = torch.tensor([2.0 / LARGEST / math.sqrt(size) / 2], dtype=torch.float64)
        problem = Problem([signs], theta, even, 1e-4, LARGEST, NORM / LARGEST)
        rho = radius(problem, RIDGE, DELTA)
        runs = [draws(problem, [size], g)[0] for _ in range(repeats)]
        lost.append(sum(d.outcome(rho).lost for d in runs) / repeats)
    return Check(
        "two answers, a gap shrinking as |D|^-1/2, beta 1e-4: slope of SubOpt",
        "-0.5 +- 0.1",
        f"{slope(lost):.2f}",
        abs(slope(lost) + 0.5) < 0.1,
    )


def _constant(runs: list[list[Figures]]) -> Check:
    lost, _, coverage = means(runs)
    kept = all(lost <= bound for run in runs for lost, bound, _ in run)
    return Check(
        "a constant feature, which no preference shows: slope of the first term; SubOpt",
        "0 +- 0.1; below -0.5",
        f"{slope(coverage):.2f}; {slope(lost, 3):.2f}",
        abs(slope(coverage)) < 0.1 and slope(lost, 3) < -0.5 and kept,
    )
