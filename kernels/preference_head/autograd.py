"""The stage over pairs as one autograd node: per-sequence sums forward, per-row coefficients backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Pairs = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, float, str], tuple[Tensor, Tensor, Tensor, Tensor]]
"""`pairs` of kernel.py or of native.py."""


class PairLoss(torch.autograd.Function):
    """(loss (), sums (2B,), margins (B,)) of per-row log-probs, by a backend's `pairs`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        cu_seqlens: Tensor,
        ref_logprobs: Tensor,
        pair_weights: Tensor | None,
        beta: float,
        label_smoothing: float,
        loss: str,
        pairs: Pairs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (rows, cu_seqlens, ref_logprobs, pair_weights, beta, label_smoothing, loss)
        losses, sums, margins, d_margins = pairs(*inputs)
        ctx.save_for_backward(cu_seqlens, d_margins)
        ctx.beta, ctx.num_rows = beta, rows.shape[0]
        return losses.sum(), sums, margins

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, d_sums: Tensor, d_margins: Tensor) -> tuple[Tensor | None, ...]:
        cu_seqlens, loss_slopes = ctx.saved_tensors
        d_pair = ctx.beta * (d_loss * loss_slopes + d_margins)
        d_sequence = d_sums + torch.cat((d_pair, -d_pair))
        # output_size spares the device a report of how many rows there are
        d_rows = torch.repeat_interleave(d_sequence, cu_seqlens.diff(), output_size=ctx.num_rows)
        return (d_rows, *(None,) * 7)
