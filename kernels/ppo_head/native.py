"""What happens to a chunk of logits between ppo_head's GEMMs, in C++ (csrc/ppo_head.cpp): the CPU twin of rows.py."""

import torch
from torch import Tensor

from rto_fast.kernels.common.contract import Transform
from rto_fast.kernels.common.native import library, pointer, threads
from rto_fast.kernels.common.native_rows import head_numbers

from .silent import chunk_gradients_, gradients
from .surrogate import ChunkRows, Decisions, Surrogate

__all__ = ["chunk_gradients_", "gradients", "ppo_rows_"]

KL = {"k1": 1, "k2": 2, "k3": 3}


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
    """d logits lie over z's own storage, silent rows' are left as they were."""
    loss, logprobs, d_logprobs = (torch.empty_like(z[:, 0]) for _ in range(3))
    entropies = torch.empty_like(loss) if entropy else None
    library().ppo_rows(
        pointer(z), *z.shape, *head_numbers(bias, transform), *map(pointer, rows[:5]),
        1.0 - s.clip, 1.0 + s.clip, s.entropy_coef, s.kl_coef, KL[s.kl] if s.kl_coef else 0, gradient,
        pointer(loss), pointer(logprobs), pointer(entropies), pointer(d_logprobs), threads(),
    )  # fmt: skip
    return ChunkRows(loss, logprobs, entropies, z, silent=None if s.entropy_coef else d_logprobs == 0.0)
