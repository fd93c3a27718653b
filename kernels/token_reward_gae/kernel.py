"""token_reward_gae in one Triton launch. R response rows, S sequences; [BLOCK] is a tile of rows of one sequence.

Time runs backwards, so blocks are loaded back to front and scanned forwards: `reverse=True` of tl.associative_scan has
given wrong results (triton-lang/triton#4362, still open), and nothing is won by it, the loads coalesce either way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rto_fast.kernels.token_reward_gae.reference import TokenRewards
from rto_fast.kernels.token_reward_gae.spec import RewardSpec

# one constant for every batch: a block that followed the lengths would let neighbours change a sequence's rounding
BLOCK = 512


@triton.jit
def _discount(decay_1, sum_1, decay_2, sum_2):
    """Compose x -> decay x + sum: first 1 (later in time), then 2."""
    return decay_1 * decay_2, sum_2 + decay_2 * sum_1


@triton.jit
def _restart(starts_1, sum_1, starts_2, sum_2):
    """Segmented sum: what begins a segment forgets what came before."""
    return starts_1 | starts_2, sum_2 + tl.where(starts_2 != 0, 0.0, sum_1)


@triton.jit
def _dense(p_dpo, p_ref, rows, inside, beta_1, clip):
    """[BLOCK] clip(beta_1 (log pi_dpo - log pi_ref)); NaN stays NaN, a clamp that hid one would reward it."""
    log_ratio = tl.load(p_dpo + rows, mask=inside, other=0.0) - tl.load(p_ref + rows, mask=inside, other=0.0)
    return tl.clamp(beta_1 * log_ratio, -clip, clip, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _token_reward_gae(
    p_old,
    p_ref,
    p_dpo,
    p_values,
    p_cu_seqlens,
    p_scores,
    p_terminal,
    p_sentence_ends,
    p_counted,
    p_rewards,
    p_advantages,
    p_returns,
    p_moments,
    beta_1,
    beta_2,
    clip,
    beta_3,
    score_clip,
    gamma,
    decay,
    KL: tl.constexpr,
    GRANULARITY: tl.constexpr,
    SHAPING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per sequence: at most one pass forwards to place the dense reward, one backwards for the rest.

    p_dpo, p_scores, p_terminal and p_counted may be None. gamma and decay = gamma lam; grid (S,).
    """
    s = tl.program_id(0)
    start = tl.load(p_cu_seqlens + s)
    length = tl.load(p_cu_seqlens + s + 1) - start
    num_blocks = tl.cdiv(length, BLOCK)
    lane = tl.arange(0, BLOCK)

    last_reward = 0.0  # what the last row gets beside its own dense reward and KL
    if p_scores is not None:
        score = tl.load(p_scores + s)
        last_reward += beta_3 * tl.clamp(score, -score_clip, score_clip, propagate_nan=tl.PropagateNan.ALL)
    if p_terminal is not None:
        last_reward += tl.load(p_terminal + s)

    if p_dpo is not None and (GRANULARITY != "token" or SHAPING):
        unpaid = 0.0
        before_last = 0.0
        for block in range(0, num_blocks):
            t = block * BLOCK + lane
            inside = t < length
            placed = _dense(p_dpo, p_ref, start + t, inside, beta_1, clip)
            if GRANULARITY == "sentence":
                # a segment starts on the row after a sentence end; the block's first row goes on with what is unpaid
                starts = tl.load(p_sentence_ends + start + t - 1, mask=inside & (t > 0), other=0).to(tl.int32)
                placed = tl.where(lane == 0, placed + unpaid, placed)
                _, sums = tl.associative_scan((starts, placed), 0, _restart)
                pays = tl.load(p_sentence_ends + start + t, mask=inside, other=0) != 0
                unpaid = tl.sum(tl.where((lane == BLOCK - 1) & ~pays, sums, 0.0), 0)
                placed = tl.where(pays | (t == length - 1), sums, 0.0)
                tl.store(p_rewards + start + t, placed, mask=inside)
            if SHAPING:
                before_last += tl.sum(tl.where(t < length - 1, placed, 0.0), 0)
            elif GRANULARITY == "response":
                before_last += tl.sum(tl.where(inside, placed, 0.0), 0)
        if SHAPING:
            last_reward -= before_last
        elif GRANULARITY == "response":
            last_reward += before_last
        if GRANULARITY == "sentence":
            tl.debug_barrier()  # the rows come back below in other threads

    carry = 0.0
    count = 0.0
    mean = 0.0
    m2 = 0.0
    for i in range(0, num_blocks):
        block = num_blocks - 1 - i
        t = block * BLOCK + BLOCK - 1 - lane  # the latest row in lane 0; lanes past the end stay 0 and pass 0 on
        inside = t < length
        is_last = t == length - 1
        rows = start + t
        reward = tl.zeros([BLOCK], tl.float32)
        if p_dpo is not None:
            if GRANULARITY == "token":
                reward = _dense(p_dpo, p_ref, rows, inside, beta_1, clip)
            elif GRANULARITY == "sentence":
                reward = tl.load(p_rewards + rows, mask=inside, other=0.0)
            if SHAPING:
                reward = tl.where(is_last, 0.0, reward)
        if KL:
            old = tl.load(p_old + rows, mask=inside, other=0.0)
            reward -= beta_2 * (old - tl.load(p_ref + rows, mask=inside, other=0.0))
        reward = tl.where(is_last, reward + last_reward, reward)

        value = tl.load(p_values + rows, mask=inside, other=0.0)
        next_value = tl.load(p_values + rows + 1, mask=inside & (t + 1 < length), other=0.0)
        delta = reward + gamma * next_value - value
        decays, sums = tl.associative_scan((tl.full([BLOCK], 1.0, tl.float32) * decay, delta), 0, _discount)
        advantage = sums + decays * carry
        carry = tl.sum(tl.where(lane == BLOCK - 1, advantage, 0.0), 0)
        if GRANULARITY == "sentence":
            tl.debug_barrier()  # all have read the placed rewards before anyone writes over them
        tl.store(p_rewards + rows, reward, mask=inside)
        tl.store(p_advantages + rows, advantage, mask=inside)
        tl.store(p_returns + rows, advantage + value, mask=inside)

        # this block's moments, merged into the sequence's (Chan, Golub and LeVeque 1983)
        block_count = tl.sum(inside.to(tl.float32), 0)
        block_mean = tl.sum(tl.where(inside, advantage, 0.0), 0) / block_count
        deviation = tl.where(inside, advantage - block_mean, 0.0)
        total = count + block_count
        gap = block_mean - mean
        mean += gap * (block_count / total)
        m2 += tl.sum(deviation * deviation, 0) + gap * gap * (count * block_count / total)
        count = total

    if p_counted is not None:
        counts = tl.load(p_counted + s) != 0
        count = tl.where(counts, count, 0.0)
        mean = tl.where(counts, mean, 0.0)
        m2 = tl.where(counts, m2, 0.0)
    tl.store(p_moments + 3 * s, count)
    tl.store(p_moments + 3 * s + 1, mean)
    tl.store(p_moments + 3 * s + 2, m2)


def token_reward_gae_triton(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    reward: RewardSpec,
) -> TokenRewards:
    """The arguments of token_reward_gae, unchecked; float32. One launch of S programs, no host synchronisation."""
    num_rows, num_sequences = values.shape[0], cu_seqlens.shape[0] - 1
    rewards, advantages, returns = torch.empty_like(values), torch.empty_like(values), torch.empty_like(values)
    if num_rows == 0:
        return TokenRewards(rewards, advantages, returns, values.new_zeros(num_sequences, 3))
    moments = values.new_empty(num_sequences, 3)
    # shaping keeps what is paid before the last row, and "response" pays nothing there
    shaped_away = reward.shaping_only and reward.granularity == "response"
    dpo = None if reward.beta_1 == 0 or shaped_away else dpo_logprobs
    scores = None if reward.beta_3 == 0 else reward.scores
    sentence_ends = reward.sentence_ends if reward.granularity == "sentence" else None
    with torch.cuda.device_of(values):
        _token_reward_gae[(num_sequences,)](
            p_old=old_logprobs.contiguous(),
            p_ref=ref_logprobs.contiguous(),
            p_dpo=None if dpo is None else dpo.contiguous(),
            p_values=values.contiguous(),
            p_cu_seqlens=cu_seqlens.contiguous(),
            p_scores=None if scores is None else scores.contiguous(),
            p_terminal=None if reward.terminal is None else reward.terminal.contiguous(),
            p_sentence_ends=None if sentence_ends is None else sentence_ends.contiguous().view(torch.uint8),
            p_counted=None if reward.counted is None else reward.counted.contiguous().view(torch.uint8),
            p_rewards=rewards,
            p_advantages=advantages,
            p_returns=returns,
            p_moments=moments,
            beta_1=float(reward.beta_1),
            beta_2=float(reward.beta_2),
            clip=float(reward.clip),
            beta_3=float(reward.beta_3),
            score_clip=float(reward.score_clip),
            gamma=float(reward.gamma),
            decay=float(reward.gamma * reward.lam),
            KL=reward.beta_2 != 0,
            GRANULARITY=reward.granularity,
            SHAPING=reward.shaping_only,
            BLOCK=BLOCK,
            num_warps=4,
            maxnreg=96,  # without a bound, ptxas aims at 40 registers in some configurations and spills
        )
    return TokenRewards(rewards, advantages, returns, moments)
