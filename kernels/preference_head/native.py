"""preference_head's stage over pairs in C++ (csrc/preference_head.cpp): the CPU twin of kernel.py."""

import torch
from torch import Tensor

from rto_fast.kernels.common.native import library, pointer


def pairs(
    rows: Tensor,  # (R,) float32
    cu_seqlens: Tensor,  # (2B+1,) int32
    ref_logprobs: Tensor,  # (2B,)
    pair_weights: Tensor | None,  # (B,)
    beta: float,
    label_smoothing: float,
    loss: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(losses (B,), sums (2B,), margins (B,), d loss / d margin (B,)); sums are added in float64."""
    num_pairs = ref_logprobs.shape[0] // 2
    sums = torch.empty_like(ref_logprobs)
    losses, margins, d_margins = (ref_logprobs.new_empty(num_pairs) for _ in range(3))
    library().pairs(
        *map(pointer, (rows, cu_seqlens, ref_logprobs, pair_weights)), num_pairs, beta, label_smoothing, loss == "ipo",
        *map(pointer, (losses, sums, margins, d_margins)),
    )  # fmt: skip
    return losses, sums, margins, d_margins
