"""token_reward_gae in whole-tensor torch: the "reference" backend.

R response rows, S sequences, L rows of the longest one. Python loops over L steps of at most S elements each, never
over R rows, and nothing is padded. Every sequence's arithmetic is one fixed chain of single operations (a fused
multiply-add would round differently in a vector's tail), so neighbours in the pack cannot change a bit of it.
"""

import torch
from torch import Tensor

from rto_fast.kernels.token_reward_gae.reference import TokenRewards
from rto_fast.kernels.token_reward_gae.spec import RewardSpec


def token_reward_gae_vectorised(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    reward: RewardSpec,
) -> TokenRewards:
    """The arguments of token_reward_gae, unchecked; float32 or float64, any device (off the CPU it waits once)."""
    num_rows, num_sequences = values.shape[0], cu_seqlens.shape[0] - 1
    if num_rows == 0:
        empty = values.new_zeros(0)
        return TokenRewards(empty, empty.clone(), empty.clone(), values.new_zeros(num_sequences, 3))
    ends = cu_seqlens[1:].long()
    lengths = cu_seqlens.diff().long()
    sequence = torch.arange(num_sequences, device=values.device).repeat_interleave(lengths, output_size=num_rows)
    filled = lengths > 0
    last = ends[filled] - 1

    rewards = torch.zeros_like(values)
    if dpo_logprobs is not None and reward.beta_1 != 0:
        rewards = (reward.beta_1 * (dpo_logprobs - ref_logprobs)).clamp(-reward.clip, reward.clip)
        if reward.granularity != "token":
            rewards = _pay_at(rewards, reward.sentence_ends if reward.granularity == "sentence" else None, last)
        if reward.shaping_only:
            rewards[last] = 0.0
            rewards[last] = -_sum_by(sequence, rewards, num_sequences)[filled].to(values.dtype)
    if reward.beta_2 != 0:
        rewards = rewards - reward.beta_2 * (old_logprobs - ref_logprobs)
    if reward.scores is not None and reward.beta_3 != 0:
        rewards[last] += reward.beta_3 * reward.scores[filled].clamp(-reward.score_clip, reward.score_clip)
    if reward.terminal is not None:
        rewards[last] += reward.terminal[filled]

    next_values = torch.cat([values[1:], values.new_zeros(1)])
    next_values[last] = 0.0
    delta = rewards + reward.gamma * next_values - values
    advantages = _discounted_sums(delta, lengths, ends, sequence, reward.gamma * reward.lam)
    moments = _moments(advantages, lengths, sequence, reward.counted)
    return TokenRewards(rewards, advantages, advantages + values, moments)


def _pay_at(dense: Tensor, paydays: Tensor | None, last: Tensor) -> Tensor:
    """Sum (R,) rewards up to and onto the rows where `paydays` (R,) bool holds, and the last row of each sequence."""
    due = torch.zeros_like(dense, dtype=torch.bool) if paydays is None else paydays.clone()
    due[last] = True
    payday = due.cumsum(0) - due.long()
    return torch.zeros_like(dense).masked_scatter_(due, _sum_by(payday, dense, dense.shape[0]).to(dense.dtype))


def _sum_by(group: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """(num_groups,) float64: sums of x in row order, which on the CPU is bitwise free of the other groups."""
    return torch.zeros(num_groups, dtype=torch.float64, device=x.device).index_add_(0, group, x.double())


def _discounted_sums(x: Tensor, lengths: Tensor, ends: Tensor, sequence: Tensor, decay: float) -> Tensor:
    """(R,): y_t = x_t + decay * y_{t+1} within each sequence.

    Rows are reordered by their distance from the end of their sequence, and at one distance by falling length: then
    step k needs exactly the first rows of step k - 1, and both are slices.
    """
    by_length = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(len(by_length), device=x.device))
    distance = ends[sequence] - 1 - torch.arange(len(x), device=x.device)
    counts = distance.bincount()
    place = (counts.cumsum(0) - counts)[distance] + rank[sequence]

    y = torch.empty_like(x).scatter_(0, place, x)
    steps = y.split(counts.tolist())
    for later, now in zip(steps, steps[1:], strict=False):
        now.add_(later[: len(now)] * decay)
    return y[place]


def _moments(advantages: Tensor, lengths: Tensor, sequence: Tensor, counted: Tensor | None) -> Tensor:
    """(S, 3): count, mean and sum of squared deviations, summed in float64; zeros where not counted."""
    count = lengths.double()
    mean = _sum_by(sequence, advantages, len(lengths)) / count.clamp(min=1)
    m2 = _sum_by(sequence, (advantages - mean[sequence]).square(), len(lengths))
    moments = torch.stack([count, mean, m2], dim=1).to(advantages.dtype)
    return moments if counted is None else moments.masked_fill(~counted[:, None], 0.0)
