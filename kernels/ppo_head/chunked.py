"""ppo_head's loss and gradients in one pass over chunks of rows: logits, row functions, and two GEMMs back.

R rows, H hidden, V vocabulary. A row's gradient is known as soon as its log-prob is, so that no logits are recomputed:
three GEMMs instead of four. This needs all V logits of a row at once; a workspace too small for a hundred rows
takes the two passes of linear_logprob instead.

The row functions' module brings both passes' gradients along: those here and in common/chunked.py, or, where the host
knows which rows the clip has silenced, those of silent.py.
"""

import torch
from torch import Tensor

from rto_fast.kernels.common.chunked import statistics
from rto_fast.kernels.common.workspace import (
    accumulator,
    chunk_rows,
    matmul_,
    padded,
    padded_bias,
    tile,
    workspace_bytes,
)

from .contract import Grads, Inputs, Result
from .surrogate import ChunkRows, surrogate

# fewer rows make every GEMM a reading of the whole weight: measured on 2048 x 512 x 50304 on a CPU, three GEMMs a
# chunk take 1.3 of the time of two passes at 41 rows, 1.0 at 83 and 0.9 at 125
MIN_ROWS = 96


def ppo(inputs: Inputs) -> Result:
    """Loss, statistics and the gradients in `needs`."""
    hidden, weight, plan = inputs.hidden, inputs.weight, inputs.plan
    limit = workspace_bytes(hidden.device, plan.workspace_mb)
    dtype = accumulator(hidden.dtype)
    c = chunk_rows(weight.shape[0], hidden.device, limit // dtype.itemsize)
    upcast = plan.rows.operand(weight[:0]).dtype != weight.dtype
    if c < min(MIN_ROWS, hidden.shape[0]) or (upcast and 4 * weight.numel() > limit):
        return _two_passes(inputs)
    return _one_pass(inputs, c)


def _two_passes(inputs: Inputs) -> Result:
    hidden, weight, bias, rows, s, plan, ppo_rows, entropy, needs, weight_grad = inputs
    hidden = _cleared(hidden, rows.live)
    stats = statistics(hidden, weight, bias, rows.target, plan, entropy)
    loss, d_logprobs, d_entropy = surrogate(stats.logprobs, stats.entropy, rows, s)
    grads: Grads = (None, None, None)
    if any(needs):
        slopes = (d_logprobs, d_entropy)
        grads = ppo_rows.gradients(hidden, weight, bias, rows.target, plan, stats, *slopes, needs, weight_grad)
    return Result(loss.sum(), stats.logprobs, stats.entropy, grads)


def _cleared(hidden: Tensor, live: Tensor | None) -> Tensor:
    """Zeros in the rows that do not count: NaN times a gradient of 0 would be NaN."""
    return hidden if live is None else hidden.masked_fill(~live[:, None], 0.0)


def _one_pass(inputs: Inputs, c: int) -> Result:
    """By chunks of c rows."""
    hidden, weight, bias, rows, s, plan, ppo_rows, entropy, needs, weight_grad = inputs
    num_rows, vocab, operand = hidden.shape[0], weight.shape[0], plan.rows.operand
    dtype, device = accumulator(hidden.dtype), hidden.device
    need_h, need_w, need_b = needs
    pitch = plan.rows.PITCH
    buffer = torch.empty(min(c, num_rows) * padded(vocab, pitch), device=device, dtype=dtype)
    loss, logprobs = (torch.empty(num_rows, device=device, dtype=dtype) for _ in range(2))
    entropies = torch.empty_like(logprobs) if entropy else None
    d_hidden = torch.empty_like(hidden) if need_h else None
    # one rounding: into dW itself where its dtype is that of the sum, or where one chunk of rows is the whole sum
    w, b = operand(weight), padded_bias(bias, 0, vocab, dtype, pitch)
    direct = weight.dtype == dtype or (num_rows <= c and w.dtype == weight.dtype)
    d_weight = weight_grad if need_w else None
    if need_w and d_weight is None:
        d_weight = torch.empty_like(weight, dtype=weight.dtype if direct else dtype)
    d_bias = torch.zeros_like(bias, dtype=dtype) if need_b and bias is not None else None

    for t in range(0, num_rows, c):
        chunk = slice(t, min(t + c, num_rows))
        part = rows.rows(chunk.start, chunk.stop)
        h = _cleared(operand(hidden[chunk]), part.live)
        z = matmul_(tile(buffer, len(h), vocab, pitch), h, w.T)
        out = ppo_rows.ppo_rows_(z, b, plan.transform, part, s, entropy, any(needs), h.dtype)
        loss[chunk], logprobs[chunk] = out.loss, out.logprobs
        if entropies is not None and out.entropy is not None:
            entropies[chunk] = out.entropy
        if any(needs):
            d_h = None if d_hidden is None else d_hidden[chunk]
            ppo_rows.chunk_gradients_(out, h, w, d_h, d_weight, d_bias, t > 0 or weight_grad is not None)
    if weight_grad is not None:
        d_weight = None
    elif d_weight is not None:
        d_weight = d_weight.zero_() if num_rows == 0 else d_weight
        d_weight = d_weight.to(weight.dtype)
    d_bias = None if d_bias is None else d_bias.to(weight.dtype)
    return Result(loss.sum(), logprobs, entropies, (d_hidden, d_weight, d_bias))


def chunk_gradients_(
    out: ChunkRows,
    h: Tensor,  # (c, H)
    w: Tensor,  # (V, H)
    d_hidden: Tensor | None,  # (c, H), written
    d_weight: Tensor | None,  # (V, H), added to where `add` is set and written where it is not
    d_bias: Tensor | None,  # (V,), added to
    add: bool,
) -> None:
    """The GEMMs back from a chunk of rows of d logits."""
    dz, scale = out.d_logits, out.scale
    if d_hidden is not None:
        if scale is None and dz.dtype == d_hidden.dtype:
            torch.mm(dz, w, out=d_hidden)
        else:
            d_h = torch.mm(dz, w)
            d_hidden.copy_(d_h if scale is None else d_h.mul_(scale[:, None]))
    if d_weight is not None:
        matmul_(d_weight, dz.T, h if scale is None else h * scale[:, None], add=add)
    if d_bias is not None:
        d_bias += dz.sum(0, dtype=d_bias.dtype) if scale is None else dz.T @ scale
