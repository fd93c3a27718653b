"""What a backend brings to ppo_head's pass over chunks of rows, and what the pass takes and gives.

R rows, H hidden, V vocabulary.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.contract import Statistics, Transform

from .surrogate import ChunkRows, Decisions, Surrogate

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden, weight and bias."""


class PPORows(Protocol):
    """A module that works on a chunk: rows.py (torch), which says what it does, native.py or kernel.py."""

    def ppo_rows_(
        self,
        z: Tensor,
        bias: Tensor | None,
        transform: Transform,
        rows: Decisions,
        s: Surrogate,
        entropy: bool,
        gradient: bool,
        dtype: torch.dtype,
    ) -> ChunkRows: ...

    def chunk_gradients_(
        self,
        out: ChunkRows,
        h: Tensor,
        w: Tensor,
        d_hidden: Tensor | None,
        d_weight: Tensor | None,
        d_bias: Tensor | None,
        add: bool,
    ) -> None: ...

    def gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        plan: HeadPlan,
        stats: Statistics,
        d_logprobs: Tensor,
        d_entropy: Tensor | None,
        needs: tuple[bool, bool, bool],
        weight_grad: Tensor | None,
    ) -> Grads: ...


class Inputs(NamedTuple):
    """What a loss and its gradients are made from."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    rows: Decisions
    s: Surrogate
    plan: HeadPlan
    ppo_rows: PPORows
    entropy: bool
    needs: tuple[bool, bool, bool]
    """Whether hidden, weight and bias want a gradient."""
    weight_grad: Tensor | None
    """(V, H): what the gradient of the weight is added to, in place of one in the result."""


class Result(NamedTuple):
    loss: Tensor
    logprobs: Tensor
    entropy: Tensor | None
    grads: Grads
