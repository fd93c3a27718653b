"""Algorithm 1 of Zhong et al. (arXiv:2404.18922) with exact planning, and the right-hand side of its Theorem 4.2.

    r_hat(s, a) = phi(s, a)^T theta_MLE - rho |phi(s, a)|_{Sigma_D^-1}                                       (eq. 4.2)
    SubOpt(pi_hat) <= 2 rho E_{d*} |phi(s, a)|_{Sigma_D^-1} - beta E_{d*} KL(pi*(.|s) || pi_hat(.|s))    (Theorem 4.2)

d* is the visitation of pi*, SubOpt = V*(rho) - V^pi(rho) under the true reward (eq. 3.5). The theorem is deterministic
once |theta_MLE - theta*|_Sigma <= rho. Its first term falls as |D|^-1/2 only where the data's differences
sum_h phi^w - phi^l span every phi(s, a) on pi*'s way. They cannot where a combination of features is a potential
Phi(s a) - Phi(s) with equal ends, of which a constant feature is the plainest: preferences never see it (Theorem 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.theory.linear_reward import Problem
from rto_fast.theory.soft_q import expect, optimal_policy, policy_q
from rto_fast.theory.token_tree import Conditionals, sequence_logprobs


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

    def value(pi: Conditionals) -> Tensor:
        return policy_q(pi, pessimistic, problem.ref, problem.beta)[1][0]

    whole = sequence_logprobs(error)
    apart = [b - p for b, p in zip(best, policy, strict=True)]
    return Outcome(
        lost=sub_optimality(problem, policy),
        coverage=2 * rho * float(expect(best, widths(problem, covariance))),
        divergence=problem.beta * float(expect(best, apart)),
        terms=(-float(expect(best, error)), float(expect(policy, error)), float(value(best) - value(policy))),
        spread=float(whole.max() - whole.min()),
    )
