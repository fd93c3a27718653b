"""preference_head's stage over pairs in Triton: one program sums both sequences of a pair and takes its loss."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def segment_sum(x_ptr, begin, end, BLOCK: tl.constexpr):
    """Sum of x[begin:end] in float32: every lane sums its own column before the lanes are added."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + i, mask=i < end, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def log_sigmoid(x):
    e = tl.exp(-tl.abs(x))
    # log(1 + e) would round a small e away
    return tl.minimum(x, 0.0) - tl.where(e < 1e-3, e * (1.0 - 0.5 * e), tl.log(1.0 + e))


@triton.jit
def pairs_kernel(
    rows_ptr, cu_ptr, ref_ptr, pair_weight_ptr, sum_ptr, margin_ptr, loss_ptr, d_margin_ptr,
    num_pairs, beta, smoothing, IPO: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B,): sums (2B,), margins, losses and d loss / d margin (B,) of the pairs."""
    pair = tl.program_id(0)
    chosen = segment_sum(rows_ptr, tl.load(cu_ptr + pair), tl.load(cu_ptr + pair + 1), BLOCK)
    other = pair + num_pairs
    rejected = segment_sum(rows_ptr, tl.load(cu_ptr + other), tl.load(cu_ptr + other + 1), BLOCK)
    margin = beta * ((chosen - tl.load(ref_ptr + pair)) - (rejected - tl.load(ref_ptr + other)))
    if IPO:
        gap = margin / beta - 0.5 / beta
        loss = gap * gap
        d_margin = 2.0 * gap / beta
    else:
        loss = -(1.0 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)
        d_margin = smoothing - tl.exp(log_sigmoid(-margin))
    if HAS_WEIGHTS:
        weight = tl.load(pair_weight_ptr + pair)
        loss *= weight
        d_margin *= weight
    tl.store(sum_ptr + pair, chosen)
    tl.store(sum_ptr + other, rejected)
    tl.store(margin_ptr + pair, margin)
    tl.store(loss_ptr + pair, loss)
    tl.store(d_margin_ptr + pair, d_margin)


def pairs(
    rows: Tensor,  # (R,) float32
    cu_seqlens: Tensor,  # (2B+1,) int32
    ref_logprobs: Tensor,  # (2B,)
    pair_weights: Tensor | None,  # (B,)
    beta: float,
    label_smoothing: float,
    loss: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(losses (B,), sums (2B,), margins (B,), d loss / d margin (B,))."""
    num_pairs = ref_logprobs.shape[0] // 2
    sums = torch.empty_like(ref_logprobs)
    margins, losses, d_margins = (torch.empty(num_pairs, device=rows.device, dtype=torch.float32) for _ in range(3))
    if num_pairs:
        with torch.cuda.device_of(rows):
            pairs_kernel[(num_pairs,)](
                rows, cu_seqlens, ref_logprobs, pair_weights, sums, margins, losses, d_margins,
                num_pairs, beta, label_smoothing,
                IPO=loss == "ipo", HAS_WEIGHTS=pair_weights is not None, BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    return losses, sums, margins, d_margins
