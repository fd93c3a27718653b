"""What happens to a chunk of logits between ppo_head's GEMMs, in Triton: the twin of rows.py, one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rto_fast.kernels.common.chunked import gradients
from rto_fast.kernels.common.contract import Transform
from rto_fast.kernels.common.kernel import (
    constants,
    expm1,
    in_place,
    online,
    scalars,
    store_gradient,
    target_logit,
)

from .chunked import chunk_gradients_
from .surrogate import ChunkRows, Decisions, Surrogate

__all__ = ["chunk_gradients_", "gradients", "ppo_rows_"]


@triton.jit
def ppo_kernel(
    z_ptr, out_ptr, bias_ptr, target_ptr, old_ptr, advantage_ptr, weight_ptr, ref_ptr,
    loss_ptr, logprob_ptr, entropy_ptr,
    n, width, out_width, inv_temperature, softcap, clip_low, clip_high, entropy_coef, kl_coef,
    KL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr,
    ENTROPY_GRADIENT: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (c,): statistics, loss and gradient of one row of logits, read twice and overwritten once."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * width
    column = tl.load(target_ptr + row)
    zy = target_logit(z_ptr, n, column, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP)
    # the lowest float32 stands for -inf, so that a block of nothing but -inf columns leaves no -inf - -inf behind
    zero = tl.cast(0.0, tl.float32)
    m, s, u = online(
        zero - 3.4028234663852886e38, zero, zero, z_ptr, n, width, bias_ptr, inv_temperature, softcap,
        HAS_BIAS, HAS_CAP, ENTROPY, BLOCK,
    )  # fmt: skip
    log_s = tl.log(s)
    logprob = zy - m - log_s
    entropy = log_s - u / s

    weight = tl.load(weight_ptr + row)
    advantage = tl.load(advantage_ptr + row)
    ratio = tl.exp(logprob - tl.load(old_ptr + row))
    free = -advantage * ratio
    clipped = -advantage * tl.minimum(tl.maximum(ratio, clip_low), clip_high)
    loss = tl.maximum(free, clipped)
    # the clipped side is constant where it is the larger one; inside the clip range both are the same; NaN stays NaN
    d_logprob = tl.where(free < clipped, 0.0, free)
    if KL != "none":
        d = logprob - tl.load(ref_ptr + row)
        if KL == "k1":
            kl, d_kl = d, 1.0
        elif KL == "k2":
            kl, d_kl = 0.5 * d * d, d
        else:
            # expm1 keeps the digits of a policy that is still close to the reference
            e = expm1(-d)
            kl, d_kl = e + d, -e
        loss += kl_coef * kl
        d_logprob += kl_coef * d_kl
    if ENTROPY_GRADIENT:
        loss -= entropy_coef * entropy
    # a row of weight 0 adds nothing, whatever its numbers are
    live = weight != 0.0
    tl.store(loss_ptr + row, tl.where(live, weight * loss, 0.0))
    tl.store(logprob_ptr + row, logprob)
    if ENTROPY:
        tl.store(entropy_ptr + row, entropy)
    if GRADIENT:
        # all statistics are read before the first gradient is written
        tl.debug_barrier()
        store_gradient(
            z_ptr, out_ptr + row * out_width, n, width, column, m, log_s, logprob, entropy,
            tl.where(live, weight * d_logprob, 0.0), -entropy_coef * weight,
            bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, ENTROPY_GRADIENT, BLOCK,
        )  # fmt: skip


def ppo_rows_(
    z: Tensor,
    bias: Tensor | None,
    transform: Transform,
    rows: Decisions,
    s: Surrogate,
    entropy: bool,
    gradient: bool,
    dtype: torch.dtype,
) -> ChunkRows:
    """d logits are in `dtype`, over z's own storage."""
    c, n = z.shape
    out = in_place(z, dtype)
    loss, logprobs = (torch.empty(c, device=z.device, dtype=torch.float32) for _ in range(2))
    entropies = torch.empty_like(logprobs) if entropy else None
    with torch.cuda.device_of(z):
        ppo_kernel[(c,)](
            z, out, bias, rows.target, rows.old_logprobs, rows.advantages, rows.weights, rows.ref_logprobs,
            loss, logprobs, entropies,
            n, z.stride(0), out.stride(0), *scalars(transform), 1.0 - s.clip, 1.0 + s.clip, s.entropy_coef, s.kl_coef,
            KL=s.kl if s.kl_coef else "none", ENTROPY=entropy, ENTROPY_GRADIENT=s.entropy_coef != 0.0,
            GRADIENT=gradient, **constants(n, bias is not None, transform[1] is not None),
        )  # fmt: skip
    return ChunkRows(loss, logprobs, entropies, out)
