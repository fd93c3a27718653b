"""Preference data under a linear token reward, its maximum likelihood fit, and how far off the fit can be.

    r(s, a) = phi(s, a)^T theta*,  |phi| <= L,  |theta*| <= B           (Zhong et al., arXiv:2404.18922, Assumption 4.1)
    theta_MLE = argmax_{|theta| <= B} sum_D log sigmoid(x^T theta),  x = sum_h phi(winner) - phi(loser)        (eq. 4.1)
    Sigma_D = sum_D x x^T + lambda I,    |theta_MLE - theta*|_Sigma <= rho with probability 1 - delta       (Lemma A.1)

D steps here are the paper's H; K is the dimension of theta (the paper's d). All float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.theory.check import random_policy
from rto_fast.theory.soft_q import Table, optimal_policy, policy_q, returns
from rto_fast.theory.token_tree import Conditionals, sequence_logprobs


@dataclass(frozen=True)
class Problem:
    """A token tree with a linear reward: `features` D tensors (V^d, V, K), `theta` (K,), `ref` pi_ref, `beta`."""

    features: list[Tensor]
    theta: Tensor
    ref: Conditionals
    beta: float
    largest: float
    """L, the largest |phi|."""
    norm: float
    """B, the bound on |theta|."""

    def reward(self, theta: Tensor) -> list[Tensor]:
        """D tensors (V^d, V): phi^T theta."""
        return [phi @ theta for phi in self.features]

    def plan(self, theta: Tensor) -> list[Tensor]:
        """D tensors (V^d, V): the log-probs of the best policy under phi^T theta, exactly."""
        return optimal_policy(self.reward(theta), self.ref, self.beta)

    def value(self, policy: Conditionals, reward: Table) -> Tensor:
        """(): V^pi of the first state under a token reward."""
        return policy_q(policy, reward, self.ref, self.beta)[1][0]

    def answers(self) -> Tensor:
        """(V^D, K): sum_h phi(s_h, a_h) of every sequence."""
        return torch.stack([returns([phi[..., k] for phi in self.features]) for k in range(len(self.theta))], 1)

    def flatness(self) -> float:
        """Upsilon = 1 / (2 + exp(-2HLB) + exp(2HLB)): the least slope of the sigmoid at any |x^T theta| <= 2HLB."""
        z = 2 * len(self.ref) * self.largest * self.norm
        return 1 / (2 + math.exp(-z) + math.exp(z))


@dataclass(frozen=True)
class Pairs:
    """Preferences, equal ones counted once: `differences` (M, K) winner minus loser, `counts` (M,) float64."""

    differences: Tensor
    counts: Tensor

    def covariance(self, ridge: float) -> Tensor:
        """(K, K): Sigma_D, with `ridge` the paper's lambda."""
        x = self.differences
        return (x * self.counts[:, None]).T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)


def random_problem(
    vocab: int, depth: int, dim: int, g: torch.Generator, *, beta: float, largest: float, norm: float
) -> Problem:
    """Random directions for phi with |phi| = L, a random theta* with |theta*| = B/2, a random pi_ref."""
    features = [torch.randn(vocab**d, vocab, dim, generator=g, dtype=torch.float64) for d in range(depth)]
    features = [largest * torch.nn.functional.normalize(phi, dim=2) for phi in features]
    theta = 0.5 * norm * torch.nn.functional.normalize(torch.randn(dim, generator=g, dtype=torch.float64), dim=0)
    return Problem(features, theta, random_policy(vocab, depth, g), beta, largest, norm)


def sample_pairs(problem: Problem, sizes: list[int], g: torch.Generator) -> list[Pairs]:
    """One stream of preferences, cut off at each size: two answers from pi_ref, the winner by eq. 3.1."""
    answers, n = problem.answers(), max(sizes)
    drawn = torch.multinomial(sequence_logprobs(problem.ref).exp(), 2 * n, replacement=True, generator=g).view(n, 2)
    margin = (answers[drawn[:, 0]] - answers[drawn[:, 1]]) @ problem.theta
    first_wins = torch.rand(n, generator=g, dtype=torch.float64) < margin.sigmoid()
    drawn = torch.where(first_wins[:, None], drawn, drawn.flip(1))
    code = drawn[:, 0] * len(answers) + drawn[:, 1]
    pairs = []
    for size in sizes:
        distinct, counts = code[:size].unique(return_counts=True)
        differences = answers[distinct // len(answers)] - answers[distinct % len(answers)]
        pairs.append(Pairs(differences, counts.double()))
    return pairs


def negative_loglik(pairs: Pairs, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (), gradient (K,) and Hessian (K, K) of -L_D (eq. 4.1)."""
    x, z = pairs.differences, pairs.differences @ theta
    miss = (-z).sigmoid()
    gradient = -(x.T @ (pairs.counts * miss))
    hessian = (x * (pairs.counts * miss * (1 - miss))[:, None]).T @ x
    return -(pairs.counts * torch.nn.functional.logsigmoid(z)).sum(), gradient, hessian


def fit(pairs: Pairs, norm: float) -> Tensor:
    """(K,) theta_MLE with |theta| <= norm (eq. 4.1), deterministic.

    The minimiser of -L_D + mu/2 |theta|^2 shortens as mu grows. Where mu = 0 (or, with data that leave a direction
    free, all but 0) is short enough that is the fit; otherwise mu is bisected until |theta| = norm.
    """
    scale = float(pairs.counts.sum()) + 1.0
    low, high = math.log(1e-14 * scale), math.log(1e4 * scale * (1 + float(pairs.differences.norm(dim=1).max())) / norm)
    theta = _newton(pairs, math.exp(low), torch.zeros_like(pairs.differences[0]))
    if theta.norm() <= norm:
        return theta
    for _ in range(60):
        middle = (low + high) / 2
        theta = _newton(pairs, math.exp(middle), theta)
        low, high = (middle, high) if theta.norm() > norm else (low, middle)
    theta = _newton(pairs, math.exp(high), theta)
    return theta * min(1.0, norm / float(theta.norm()))


def fit_gap(pairs: Pairs, theta: Tensor, norm: float) -> float:
    """A certificate: the best in the ball is at most g^T theta + norm |g| nats above L_D(theta) (concavity)."""
    gradient = negative_loglik(pairs, theta)[1]
    return float(gradient @ theta + norm * gradient.norm())


def radius(problem: Problem, ridge: float, delta: float) -> float:
    """rho of Lemma A.1 with every constant: sqrt(K + 2 sqrt(K t) + 2 t) / Upsilon + 2 sqrt(lambda) B, t = log(1/delta).

    The paper's (A.2) is C sqrt(K t / Upsilon) + lambda B^2 with an unnamed absolute C. This one is proved in lines:
    -L_D curves at least by Upsilon sum x x^T in the ball, so that u = |theta_MLE - theta*|_Sigma has
    u^2 <= (2 / Upsilon) |grad L_D(theta*)|_{Sigma^-1} u + 4 lambda B^2; and the gradient is a sum of x eta with eta
    centred, within an interval of length 1, so |.|^2 <= (K + 2 sqrt(K t) + 2 t) / 4 with probability 1 - delta
    (Hsu, Kakade, Zhang 2012, Theorem 2.1, with the variance proxy 1/4 of Hoeffding's lemma). It has the form of Zhu
    et al. 2023, Lemma 3.1, which (A.2) cites: K + t where (A.2) has K t, 1 / Upsilon where (A.2) has its root.
    """
    k, t = len(problem.theta), math.log(1 / delta)
    noise = math.sqrt(k + 2 * math.sqrt(k * t) + 2 * t)
    return noise / problem.flatness() + 2 * math.sqrt(ridge) * problem.norm


def _newton(pairs: Pairs, mu: float, theta: Tensor) -> Tensor:
    """The minimiser of -L_D + mu/2 |theta|^2 by Newton steps, halved until the gradient shortens.

    The gradient's length is the measure, not the value: near the minimum the value has lost its digits.
    """
    eye = torch.eye(len(theta), dtype=theta.dtype)

    def derivatives(point: Tensor) -> tuple[Tensor, Tensor]:
        _, gradient, hessian = negative_loglik(pairs, point)
        return gradient + mu * point, hessian + mu * eye

    gradient, hessian = derivatives(theta)
    rounding = 1e-15 * float(pairs.counts @ pairs.differences.norm(dim=1))
    for _ in range(100):
        if gradient.norm() <= rounding:
            break
        step = torch.linalg.solve(hessian, gradient)
        for halvings in range(30):
            trial = theta - 0.5**halvings * step
            trial_gradient, trial_hessian = derivatives(trial)
            if trial_gradient.norm() < gradient.norm():
                break
        else:
            break
        theta, gradient, hessian = trial, trial_gradient, trial_hessian
    return theta
