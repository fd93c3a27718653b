"""The definition of token_reward_gae: one sequence after the other, one row after the other, in the inputs' dtype.

R response rows, S sequences. Read this file to know what every backend computes; __init__.py holds the contract.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class TokenRewards(NamedTuple):
    """What PPO needs of R packed response rows in S sequences."""

    rewards: Tensor
    """(R,) r_t."""
    advantages: Tensor
    """(R,) A_t, not whitened."""
    returns: Tensor
    """(R,) A_t + V_t, the value function's target."""
    moments: Tensor
    """(S, 3) count, mean and sum of squared deviations of each sequence's advantages; see merge_moments."""


def token_reward_gae_reference(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    *,
    beta_1: float,
    beta_2: float,
    clip: float = math.inf,
    scores: Tensor | None = None,
    beta_3: float = 0.0,
    score_clip: float = 10.0,
    terminal: Tensor | None = None,
    granularity: str = "token",
    sentence_ends: Tensor | None = None,
    shaping_only: bool = False,
    gamma: float = 1.0,
    lam: float = 0.95,
    counted: Tensor | None = None,
) -> TokenRewards:
    """The arguments of token_reward_gae, unchecked; any float dtype, any device, a Python loop over every row."""
    rewards, advantages = torch.zeros_like(values), torch.zeros_like(values)
    moments = values.new_zeros(len(cu_seqlens) - 1, 3)
    bounds = cu_seqlens.tolist()
    for s, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == end:
            continue
        last = end - 1
        if dpo_logprobs is not None and beta_1 != 0:
            unpaid = values.new_zeros(())
            for t in range(start, end):
                unpaid = unpaid + (beta_1 * (dpo_logprobs[t] - ref_logprobs[t])).clamp(-clip, clip)
                if t == last or granularity == "token" or (granularity == "sentence" and sentence_ends[t]):
                    rewards[t] = unpaid
                    unpaid = values.new_zeros(())
            if shaping_only:
                rewards[last] = -rewards[start:last].sum()
        if beta_2 != 0:
            rewards[start:end] -= beta_2 * (logprobs[start:end] - ref_logprobs[start:end])
        if scores is not None and beta_3 != 0:
            rewards[last] += beta_3 * scores[s].clamp(-score_clip, score_clip)
        if terminal is not None:
            rewards[last] += terminal[s]

        next_value = next_advantage = values.new_zeros(())
        for t in reversed(range(start, end)):
            delta = rewards[t] + gamma * next_value - values[t]
            advantages[t] = delta + gamma * lam * next_advantage
            next_value, next_advantage = values[t], advantages[t]
        if counted is None or counted[s]:
            own = advantages[start:end]
            moments[s, 0] = end - start
            moments[s, 1] = own.mean()
            moments[s, 2] = (own - own.mean()).square().sum()
    return TokenRewards(rewards, advantages, advantages + values, moments)
