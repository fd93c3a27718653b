"""Sums over packed sequences."""

import torch
from torch import Tensor


def sequence_sums(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(S,): the sum of x (R,) over each sequence, added in float64 and each sequence by itself.

    Differentiable. No atomics, so the same bits every time; an empty sequence sums to 0.
    """
    sums = torch.segment_reduce(x.double(), "sum", offsets=cu_seqlens.long(), initial=0.0, unsafe=True)
    return sums.to(x.dtype)
