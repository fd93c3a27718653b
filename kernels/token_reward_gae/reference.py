"""The definition of token_reward_gae: one sequence after the other, one row after the other, in the inputs' dtype.

R response rows, S sequences. Read this file to know what every backend computes; __init__.py holds the contract.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.token_reward_gae.spec import RewardSpec


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
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    reward: RewardSpec,
) -> TokenRewards:
    """The arguments of token_reward_gae, unchecked; any float dtype, any device, a Python loop over every row."""
    rewards, advantages = torch.zeros_like(values), torch.zeros_like(values)
    moments = values.new_zeros(len(cu_seqlens) - 1, 3)
    sentence_ends = reward.sentence_ends if reward.granularity == "sentence" else None
    bounds = cu_seqlens.tolist()
    for s, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == end:
            continue
        last = end - 1
        if dpo_logprobs is not None and reward.beta_1 != 0:
            unpaid = values.new_zeros(())
            for t in range(start, end):
                unpaid = unpaid + (reward.beta_1 * (dpo_logprobs[t] - ref_logprobs[t])).clamp(-reward.clip, reward.clip)
                due = t == last or reward.granularity == "token"
                if due or (sentence_ends is not None and sentence_ends[t]):
                    rewards[t] = unpaid
                    unpaid = values.new_zeros(())
            if reward.shaping_only:
                rewards[last] = -rewards[start:last].sum()
        if reward.beta_2 != 0:
            rewards[start:end] -= reward.beta_2 * (old_logprobs[start:end] - ref_logprobs[start:end])
        if reward.scores is not None and reward.beta_3 != 0:
            rewards[last] += reward.beta_3 * reward.scores[s].clamp(-reward.score_clip, reward.score_clip)
        if reward.terminal is not None:
            rewards[last] += reward.terminal[s]

        next_value = next_advantage = values.new_zeros(())
        for t in reversed(range(start, end)):
            delta = rewards[t] + reward.gamma * next_value - values[t]
            advantages[t] = delta + reward.gamma * reward.lam * next_advantage
            next_value, next_advantage = values[t], advantages[t]
        if reward.counted is None or reward.counted[s]:
            own = advantages[start:end]
            moments[s, 0] = end - start
            moments[s, 1] = own.mean()
            moments[s, 2] = (own - own.mean()).square().sum()
    return TokenRewards(rewards, advantages, advantages + values, moments)
