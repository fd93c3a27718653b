"""The two passes over the vocabulary that the heads share: a loop of GEMMs around a backend's row functions.

T rows, H hidden, V vocabulary. No tensor of T x V is ever held: tiles of logits [c, n] live one at a time in one buffer
of a fixed size, the vocabulary in the outer loop, so that dW is written once and in the weight's dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.contract import RowFunctions, Statistics, Transform
from rto_fast.kernels.common.workspace import (
    accumulator,
    matmul_,
    padded,
    padded_bias,
    tile,
    tile_shape,
    workspace_bytes,
)


class HeadPlan(NamedTuple):
    """How a head's log-probs are computed: what its logits go through, in which memory, by which row functions."""

    temperature: float
    softcap: float | None
    workspace_mb: int | None
    rows: RowFunctions

    @property
    def transform(self) -> Transform:
        return self.temperature, self.softcap


def statistics(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, plan: HeadPlan, entropy: bool
) -> Statistics:
    """Log-prob of the target, the log-sum-exp in two parts and entropy of each row: one GEMM, one row pass."""
    num_rows, dtype, operand = hidden.shape[0], accumulator(hidden.dtype), plan.rows.operand
    c, n = tile_shape(weight.shape[0], hidden.device, dtype, plan.workspace_mb)
    buffer = torch.empty(min(c, num_rows) * padded(n, plan.rows.PITCH), device=hidden.device, dtype=dtype)
    state = plan.rows.new_state(num_rows, entropy, hidden.device, dtype)
    if _fits(hidden, plan):
        hidden = operand(hidden)
    for v in range(0, weight.shape[0], n):
        w, b = operand(weight[v : v + n]), padded_bias(bias, v, v + n, dtype, plan.rows.PITCH)
        for t in range(0, num_rows, c):
            h = operand(hidden[t : t + c])
            z = matmul_(tile(buffer, len(h), len(w), plan.rows.PITCH), h, w.T)
            plan.rows.fold(z, b, plan.transform, target[t : t + c], v, tuple(x[t : t + c] for x in state))
    return plan.rows.finish(state)


def gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    plan: HeadPlan,
    stats: Statistics,
    d_logprobs: Tensor,  # (T,)
    d_entropy: Tensor | None,  # (T,)
    needs: tuple[bool, bool, bool],
    weight_grad: Tensor | None = None,  # (V, H) float32
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias (those in `needs`), recomputing each tile: up to three GEMMs.

    With `weight_grad` that of the weight is added to it, unrounded, and None comes back.
    """
    num_rows, dtype = hidden.shape[0], accumulator(hidden.dtype)
    rows, operand = plan.rows, plan.rows.operand
    c, n = tile_shape(weight.shape[0], hidden.device, dtype, plan.workspace_mb)
    buffer = torch.empty(min(c, num_rows) * padded(n, plan.rows.PITCH), device=hidden.device, dtype=dtype)
    need_h, need_w, need_b = needs
    # the first tile writes every row of dH, and the first chunk of rows every element of dW: only T = 0 needs zeros
    d_hidden = torch.empty(hidden.shape, device=hidden.device, dtype=dtype) if need_h else None
    d_weight = weight_grad if need_w else None
    if need_w and d_weight is None:
        d_weight = (torch.empty_like if num_rows else torch.zeros_like)(weight)
    d_bias = torch.zeros_like(bias, dtype=dtype) if need_b and bias is not None else None
    # one rounding: straight into dW where its dtype is that of the sum, or where one chunk of rows is the whole sum
    alone = num_rows <= c and operand(weight[:0]).dtype == weight.dtype
    direct = weight_grad is not None or weight.dtype == dtype or alone

    scale = rows.row_scale(stats.log_sum, d_logprobs, d_entropy, plan.transform)
    out_dtype, scaled = hidden.dtype, None
    if _fits(hidden, plan):
        hidden = operand(hidden)
        scaled = hidden * scale[:, None] if need_w and scale is not None else None

    for v in range(0, weight.shape[0], n):
        w, b = operand(weight[v : v + n]), padded_bias(bias, v, v + n, dtype, plan.rows.PITCH)
        if d_weight is not None:
            d_w = d_weight[v : v + n] if direct else torch.empty(w.shape, device=w.device, dtype=dtype)
        for t in range(0, num_rows, c):
            h = operand(hidden[t : t + c])
            z = matmul_(tile(buffer, len(h), len(w), plan.rows.PITCH), h, w.T)
            chunk = slice(t, t + c)
            slopes = (d_logprobs[chunk], None if d_entropy is None else d_entropy[chunk])
            part = stats.rows(t, t + c)
            dz = rows.d_logits_(z, b, plan.transform, target[chunk], v, h.dtype, part, *slopes)
            if d_hidden is not None:
                matmul_(d_hidden[t : t + c], dz, w, add=v > 0)
            if d_weight is not None:
                if scale is not None:
                    h = h * scale[t : t + c, None] if scaled is None else scaled[t : t + c]
                matmul_(d_w, dz.T, h, add=t > 0 or weight_grad is not None)
            if d_bias is not None:
                d_bias[v : v + n] += dz.sum(0, dtype=dtype) if scale is None else dz.T @ scale[t : t + c]
        if d_weight is not None and num_rows and not direct:
            d_weight[v : v + n] = d_w
    if d_hidden is not None:
        d_hidden = (d_hidden if scale is None else d_hidden.mul_(scale[:, None])).to(out_dtype)
    d_bias = None if d_bias is None else d_bias.to(weight.dtype)
    return d_hidden, d_weight if weight_grad is None else None, d_bias


def _fits(hidden: Tensor, plan: HeadPlan) -> bool:
    """Whether a float32 copy of all hidden states stays within the workspace; if not, they are converted by chunks."""
    return 4 * hidden.numel() <= workspace_bytes(hidden.device, plan.workspace_mb)
