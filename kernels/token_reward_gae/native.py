"""token_reward_gae in C++ (csrc/token_reward_gae.cpp), each sequence on one thread: what CPUs run."""

import math

import torch
from torch import Tensor

from rto_fast.kernels.common.native import library, pointer, threads
from rto_fast.kernels.token_reward_gae.reference import TokenRewards

GRANULARITIES = {"token": 0, "sentence": 1, "response": 2}


def token_reward_gae_native(
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
    """The arguments of token_reward_gae, unchecked; float32 on a CPU."""
    num_sequences = cu_seqlens.shape[0] - 1
    rewards, advantages, returns = (torch.empty(values.shape) for _ in range(3))
    moments = torch.empty(num_sequences, 3)
    given = (
        logprobs, ref_logprobs, None if beta_1 == 0 else dpo_logprobs, values, cu_seqlens,
        None if beta_3 == 0 else scores, terminal, sentence_ends, counted,
    )  # fmt: skip
    # named, because a contiguous copy must outlive the call
    inputs = [None if x is None else x.contiguous() for x in given]
    library().token_reward_gae(
        *map(pointer, inputs[:5]), num_sequences, *map(pointer, inputs[5:]),
        beta_1, beta_2, clip, beta_3, score_clip, gamma, gamma * lam, GRANULARITIES[granularity], shaping_only,
        *map(pointer, (rewards, advantages, returns, moments)), threads(),
    )  # fmt: skip
    return TokenRewards(rewards, advantages, returns, moments)
