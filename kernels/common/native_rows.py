"""What happens to a tile of logits between its GEMMs, in C++ (csrc/linear_logprob.cpp): the CPU twin of rows.py.

A tile is [c, n] float32 with contiguous rows and is consumed. A row's bits depend neither on the number of threads nor
on the rows beside it.
"""

import torch
from torch import Tensor

from rto_fast.kernels.common.contract import Statistics, Transform
from rto_fast.kernels.common.native import library, pointer, threads
from rto_fast.kernels.common.rows import PITCH, new_state, operand

__all__ = ["PITCH", "d_logits_", "finish", "fold", "new_state", "operand", "row_scale"]


def head_numbers(bias: Tensor | None, head: Transform) -> tuple[int | None, float, float]:
    """Bias, temperature and softcap (0: none) as the functions take them."""
    temperature, softcap = head
    return pointer(bias), temperature, softcap or 0.0


def fold(
    z: Tensor, bias: Tensor | None, head: Transform, target: Tensor, first: int, state: tuple[Tensor, ...]
) -> None:
    """Fold a tile into its rows' state, in place: the online log-sum-exp."""
    m, s, zy, *u = state
    library().fold(
        pointer(z), *z.shape, *head_numbers(bias, head), pointer(target), first,
        pointer(m), pointer(s), pointer(zy), pointer(u[0]) if u else None, threads(),
    )  # fmt: skip


def finish(state: tuple[Tensor, ...]) -> Statistics:
    """(logprobs, m, log s, entropy or None) of rows whose tiles are all folded; their log-sum-exp is m + log s."""
    m, s, zy, *u = state
    logprobs, log_s = torch.empty_like(m), torch.empty_like(m)
    entropy = torch.empty_like(m) if u else None
    library().finish(len(m), *map(pointer, (m, s, zy, u[0] if u else None, logprobs, log_s, entropy)))
    return Statistics(logprobs, m, log_s, entropy)


def row_scale(log_s: Tensor, d_logprob: Tensor, d_entropy: Tensor | None, head: Transform) -> None:
    """Nothing: `d_logits_` leaves no factor of a row out."""


def d_logits_(
    z: Tensor,
    bias: Tensor | None,
    head: Transform,
    target: Tensor,
    first: int,
    dtype: torch.dtype,
    stats: Statistics,
    d_logprob: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    """Turn a tile of raw logits into its gradient; `dtype` is always z's here."""
    per_row = (*stats[:3], d_logprob, stats.entropy, d_entropy)
    library().d_logits(
        pointer(z), *z.shape, *head_numbers(bias, head), pointer(target), first, *map(pointer, per_row), threads()
    )
    return z
