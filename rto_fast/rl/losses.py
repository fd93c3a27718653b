"""Losses on response rows: sums, never means; the loop divides by the weight of the whole optimizer step.

R response rows.
"""

import math

import torch
from torch import Tensor


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Supervised fine-tuning: -sum_t w_t log pi(y_t | s_t). All (R,); differentiable in logprobs."""
    return -(logprobs * weights).sum()


def value_loss(new_values: Tensor, values: Tensor, returns: Tensor, weights: Tensor, clip: float = math.inf) -> Tensor:
    """PPO's value loss: sum_t w_t 1/2 max((V_new - R)^2, (V + clamp(V_new - V, +-clip) - R)^2).

    Schulman et al. 2017's value term, clipped as PPO implementations do; `clip=inf` leaves the maximum out.
    All (R,) float32; `values` are those that the returns were made with; differentiable in new_values.
    """
    error = (new_values - returns).square()
    if clip < math.inf:
        moved = values + (new_values - values).clamp(-clip, clip)
        error = torch.maximum(error, (moved - returns).square())
    return 0.5 * (error * weights).sum()


def wins(margins: Tensor) -> Tensor:
    """1 where a margin is positive, 1/2 where it is 0 (a tie), else 0: same shape and dtype, for any device."""
    return 0.5 * (1.0 + margins.sign())
