"""token_reward_gae in C++ (csrc/token_reward_gae.cpp), each sequence on one thread: what CPUs run."""

import torch
from torch import Tensor

from rto_fast.kernels.common.native import library, pointer, threads
from rto_fast.kernels.token_reward_gae.reference import TokenRewards
from rto_fast.kernels.token_reward_gae.spec import GRANULARITIES, RewardSpec


def token_reward_gae_native(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    reward: RewardSpec,
) -> TokenRewards:
    """The arguments of token_reward_gae, unchecked; float32 on a CPU."""
    num_sequences = cu_seqlens.shape[0] - 1
    rewards, advantages, returns = (torch.empty(values.shape) for _ in range(3))
    moments = torch.empty(num_sequences, 3)
    given = (
        old_logprobs, ref_logprobs, None if reward.beta_1 == 0 else dpo_logprobs, values, cu_seqlens,
        None if reward.beta_3 == 0 else reward.scores, reward.terminal, reward.sentence_ends, reward.counted,
    )  # fmt: skip
    # named, because a contiguous copy must outlive the call
    inputs = [None if x is None else x.contiguous() for x in given]
    library().token_reward_gae(
        *map(pointer, inputs[:5]), num_sequences, *map(pointer, inputs[5:]),
        reward.beta_1, reward.beta_2, reward.clip, reward.beta_3, reward.score_clip, reward.gamma,
        reward.gamma * reward.lam, GRANULARITIES.index(reward.granularity), reward.shaping_only,
        *map(pointer, (rewards, advantages, returns, moments)), threads(),
    )  # fmt: skip
    return TokenRewards(rewards, advantages, returns, moments)
