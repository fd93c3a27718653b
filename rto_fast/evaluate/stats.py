"""Means, win rates, also at equal length, and AUCs with 95 % intervals; numpy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054
"""Standard normal quantile at 0.975."""
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 0.975 for 1, 2, ... degrees of freedom; beyond these the normal quantile is at most 8 % too small."""


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def ci95(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def mean_estimate(values: ArrayLike) -> Estimate:
    """Mean of independent values, +- 1.96 s / sqrt(n) with s the sample deviation (n - 1).

    values: (n,), n >= 2 and enough for the normal interval to hold (30 or so). ValueError otherwise or when not finite.
    """
    x = _finite("mean_estimate", "values", values, at_least=2)
    half = Z95 * x.std(ddof=1) / np.sqrt(x.size)
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def wins(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """1 where a is above b, 1/2 where they are equal, else 0."""
    x, y = np.asarray(a), np.asarray(b)
    return (x > y) + 0.5 * (x == y)


def over_seeds(means: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds, t s / sqrt(n): what training differs by, and what the prompts do.

    means: one per seed, n >= 2, each of a policy trained (and asked) anew; s their deviation (n - 1), t Student's.
    """
    n = len(means)
    return (T975[n - 2] if n - 2 < len(T975) else Z95) * float(np.std(means, ddof=1)) / n**0.5


def win_rate(a: ArrayLike, b: ArrayLike) -> Estimate:
    """How often a beats b on the same prompt, a tie counting one half, with Wilson's score interval.

    a, b: (n,) scores of paired answers, n >= 1. Wilson (1927): centre (p + z^2/2n) / (1 + z^2/n), half-width
    z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n); ties only narrow the truth, so the interval errs on the wide side.
    """
    x, y = _finite("win_rate", "a", a, at_least=1), _finite("win_rate", "b", b, at_least=1)
    if x.size != y.size:
        raise ValueError(f"win_rate: a and b must be paired answers, got {x.size} and {y.size}; score the same prompts")
    n, rate = x.size, float(np.mean(wins(x, y)))
    shrink = 1 + Z95**2 / n
    centre = (rate + Z95**2 / (2 * n)) / shrink
    half = Z95 * np.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2)) / shrink
    # at rates 0 and 1 the outer end is exact and must not be missed by a rounding error
    return Estimate(rate, min(float(centre - half), rate), max(float(centre + half), rate))


def length_controlled(wins: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike) -> Estimate:
    """Win rate of a over b at equal length, as AlpacaEval 2 defines it (Dubois et al. 2024, eq. 1), for one pair.

        logit P(a beats b) = theta + phi tanh(d / s),   d = length of a's answer - length of b's,   s = std(d)
        length-controlled win rate = sigmoid(theta)

    Without their term for the difficulty of an instruction, which is fitted over the models of a leaderboard. Lengths
    may be in any unit (theirs are characters).
    wins: (n,) 1 = a, 0 = b, 0.5 = tie; lengths_a, lengths_b: (n,). theta and phi maximise the likelihood times
    Jeffreys' prior (Firth 1993), which keeps them finite when one side wins always or length tells the winner; the
    interval is sigmoid(theta +- 1.96 standard errors). When all d are equal there is nothing to control for, and phi
    is left out. ValueError unless n >= 1 and all numbers are finite, wins in [0, 1].
    """
    y, a, b = (np.asarray(x, float) for x in (wins, lengths_a, lengths_b))
    if not (y.ndim == 1 and y.size and y.shape == a.shape == b.shape):
        raise ValueError(f"length_controlled: wins and lengths must be (n,), got {y.shape}, {a.shape}, {b.shape}")
    if not (np.isfinite([y, a, b]).all() and (y >= 0).all() and (y <= 1).all()):
        raise ValueError("length_controlled: lengths must be finite and wins in [0, 1]; leave unjudged answers out")
    difference = a - b
    spread = difference.std()
    columns = [np.ones_like(y)] + ([np.tanh(difference / spread)] if spread else [])
    theta, error = _firth(np.stack(columns, 1), y)
    low, value, high = 1 / (1 + np.exp(-(theta + Z95 * error * np.array([-1, 0, 1]))))
    return Estimate(float(value), float(low), float(high))


def _firth(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """First coefficient of a logistic regression under Jeffreys' prior, and its standard error.

    x (n, k), y (n,). Newton's steps on the modified score x^T (y - p + h (1/2 - p)), h the hat matrix' diagonal.
    """
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ beta))
        weighted = x * np.sqrt(p * (1 - p))[:, None]
        covariance = np.linalg.pinv(weighted.T @ weighted)
        hat = np.einsum("ni,ij,nj->n", weighted, covariance, weighted)
        step = covariance @ (x.T @ (y - p + hat * (0.5 - p)))
        # a whole step can overshoot where the likelihood is flat
        step *= min(1.0, 5 / max(np.abs(step).max(), 1e-12))
        beta += step
        if np.abs(step).max() < 1e-10:
            break
    return float(beta[0]), float(np.sqrt(covariance[0, 0]))


def credit_auc(token_rewards: Sequence[ArrayLike], token_signs: Sequence[ArrayLike]) -> Estimate:
    """How well token rewards tell credited tokens from blamed ones.

    token_rewards, token_signs: one (tokens,) array per response; signs are +1, -1 or 0 (left out). Returns the AUC,
    P(reward of a + token > reward of a - token), ties counting one half, over all responses together; its interval is
    DeLong's with responses as clusters (Obuchowski 1997), because tokens of one response are not independent.
    O(n log n). ValueError when the two differ in shape or when a sign is missing altogether.
    """
    if len(token_rewards) != len(token_signs):
        raise ValueError(
            f"credit_auc: token_rewards and token_signs must have one entry per response, got {len(token_rewards)} and"
            f" {len(token_signs)}"
        )
    for i, (r, s) in enumerate(zip(map(np.shape, token_rewards), map(np.shape, token_signs), strict=True)):
        if r != s or len(r) != 1:
            raise ValueError(f"credit_auc: response {i} must have one reward per sign, got shapes {r} and {s}")
    if not len(token_rewards):
        raise ValueError("credit_auc: token_rewards must hold at least one response, got none")
    rewards = _finite("credit_auc", "token_rewards", np.concatenate([np.asarray(r, float) for r in token_rewards]), 0)
    signs = np.concatenate([np.asarray(s) for s in token_signs])
    response = np.repeat(np.arange(len(token_signs)), [np.size(s) for s in token_signs])
    plus, minus = signs > 0, signs < 0
    if not plus.any() or not minus.any():
        raise ValueError(
            f"credit_auc: token_signs must hold both signs, got {plus.sum()} positive and {minus.sum()} negative;"
            " evaluate more responses"
        )
    above = _share_below(rewards[plus], rewards[minus])  # (positives,): share of negatives each one beats
    below = 1 - _share_below(rewards[minus], rewards[plus])  # (negatives,): share of positives that beat each one
    auc = float(above.mean())
    # each response's part in the error of the AUC; the parts sum to zero
    num = len(token_signs)
    part = np.bincount(response[plus], above - auc, num) / plus.sum()
    part += np.bincount(response[minus], below - auc, num) / minus.sum()
    half = Z95 * float(np.sqrt(num / max(num - 1, 1) * np.square(part).sum()))
    return Estimate(auc, max(auc - half, 0.0), min(auc + half, 1.0))


def _share_below(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each x the share of `other` below it, equals counting one half."""
    ordered = np.sort(other)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * ordered.size)


def _finite(op: str, field: str, values: ArrayLike, at_least: int) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < at_least:
        raise ValueError(f"{op}: {field} must be (n,) with n >= {at_least}, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{op}: {field} must be finite, got {np.count_nonzero(~np.isfinite(x))} values that are not")
    return x
