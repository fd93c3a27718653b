"""Token reward and advantage of every response row, from four numbers per row, in one launch."""

import torch
from torch import Tensor

from rto_fast.kernels.common.dispatch import choose
from rto_fast.kernels.token_reward_gae import library
from rto_fast.kernels.token_reward_gae.checks import check_reward, check_rows
from rto_fast.kernels.token_reward_gae.reference import TokenRewards, token_reward_gae_reference
from rto_fast.kernels.token_reward_gae.spec import RewardSpec
from rto_fast.kernels.token_reward_gae.vectorised import token_reward_gae_vectorised

__all__ = ["RewardSpec", "TokenRewards", "merge_moments", "token_reward_gae", "token_reward_gae_reference"]


def token_reward_gae(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    reward: RewardSpec,
    *,
    backend: str | None = None,
) -> TokenRewards:
    """RTO's token reward and generalized advantage estimation over R response rows of S packed sequences.

        d_t     = clip(beta_1 (log pi_dpo - log pi_ref), -c, c)        the scale first, then the clip
        r_t     = d_t - beta_2 (log pi_old - log pi_ref) + 1[t is last] (beta_3 clamp(score, -k, k) + terminal)
        delta_t = r_t + gamma V_{t+1} - V_t                            V after the last action is 0
        A_t     = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t

    Zhong et al., Reinforced Token Optimization, eq. 4.6 (arXiv:2404.18922), with the sentence score of its later
    version (eq. 4.7) and the clip of its published code; Schulman et al. 2016, eq. 16 (arXiv:1506.02438).

    old_logprobs, ref_logprobs, dpo_logprobs, values
                   (R,) float32 (float64 on the reference backend), one row per action; dpo_logprobs may be None: no
                   dense reward
    cu_seqlens     (S+1,) int32 offsets of the sequences among the R rows; a sequence may be empty
    reward         what else is in the equation, and where d is paid: see RewardSpec. Of beta_1, beta_2, beta_3 a zero
                   is a real zero: what it multiplies is never read, so its NaN cannot leak
    granularity    "token": d is paid on its row (RTO); "sentence": summed onto the next row where sentence_ends holds,
                   or the last row (Semi-RTO); "response": summed onto the last row (sparse_dpo)
    shaping_only   the dense rewards move the credit but not the return, which stays the sentence score and the KL
                   (RS-PPO)
    returns        TokenRewards(rewards, advantages, returns: (R,), moments (S, 3)) in the dtype of `values`
    gradient       none: rewards and advantages are constants to PPO, so every input is read detached
    precision      float32 throughout (sums by sequence in float64 on the reference backend); a sequence's result
                   does not depend, to the bit, on what it is packed with
    errors         ValueError for a wrong shape, dtype, device or range. The contents of cu_seqlens (0 first, R last,
                   never falling) are checked on the CPU alone: on CUDA that would wait for the device
    cost           about 36 R bytes, memory-bound; CUDA: one launch; CPU: as many steps as the longest sequence has rows
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            columns = (old_logprobs, ref_logprobs, None if reward.beta_1 == 0 else dpo_logprobs, values)
            return TokenRewards(*library.forward(*columns, cu_seqlens, *library.flat(reward), backend))
    rows = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "dpo_logprobs": dpo_logprobs}
    check_rows("token_reward_gae", values, cu_seqlens, **rows)
    check_reward("token_reward_gae", reward, values.shape[0], cu_seqlens.shape[0] - 1, values.device)

    backend = choose("token_reward_gae", values.device, backend, dtype=values.dtype)
    if backend == "triton" and values.dtype != torch.float32:
        raise ValueError(f"token_reward_gae: backend 'triton' needs float32, got {values.dtype}; use 'reference'")
    # what a zero coefficient multiplies goes no further than this line
    dpo_logprobs = None if reward.beta_1 == 0 else dpo_logprobs
    scores, terminal = None if reward.beta_3 == 0 else reward.scores, reward.terminal
    reward = reward._replace(
        scores=None if scores is None else scores.detach().to(values.dtype),
        terminal=None if terminal is None else terminal.detach().to(values.dtype),
    )
    if backend == "triton":
        from rto_fast.kernels.token_reward_gae.kernel import token_reward_gae_triton as run
    elif backend == "native":
        from rto_fast.kernels.token_reward_gae.native import token_reward_gae_native as run
    else:
        run = token_reward_gae_vectorised
    with torch.no_grad():
        return run(old_logprobs, ref_logprobs, dpo_logprobs, values, cu_seqlens, reward)


def merge_moments(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge (S, 3) rows of count, mean, M2 into the whole's count, mean and biased variance M2 / count.

        mean = sum n_i mean_i / n,   M2 = sum M2_i + n_i (mean_i - mean)^2

    Chan, Golub and LeVeque 1983. Rows of count 0 add nothing; with no rows counted all three are 0. Rows of several
    ranks or micro-batches are merged by concatenating them first.

    moments   (S, 3) float32 or float64, as in TokenRewards
    returns   three () tensors in the dtype of `moments`, merged in float64, on the same device without waiting for it
    """
    if moments.ndim != 2 or moments.shape[1] != 3:
        raise ValueError(f"merge_moments: moments must be (S, 3), got {tuple(moments.shape)}")
    counts, means, m2s = moments.detach().double().unbind(1)
    count = counts.sum()
    safe = count.clamp(min=1)
    mean = (counts * means).sum() / safe
    variance = (m2s + counts * (means - mean).square()).sum() / safe
    return count.to(moments.dtype), mean.to(moments.dtype), variance.to(moments.dtype)
