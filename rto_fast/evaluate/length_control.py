"""Win rates at equal length: what is left of a lead when neither answer is longer. n comparisons; numpy only."""

import numpy as np
from numpy.typing import ArrayLike

from rto_fast.evaluate.stats import Z95, Estimate


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
