"""ppo_head's loss and gradients in one pass over chunks of rows: logits, row functions, and two GEMMs back.

R rows, H hidden, V vocabulary. A row's gradient is known as soon as its log-prob is, so that no logits are recomputed:
three GEMMs instead of four. This needs all V logits of a row at once; a workspace too small for a hundred rows
takes the two passes of linear_logprob instead.

A row that the clip has silenced, whose gradient is 0, is left out of the gradients' GEMMs, except on Triton: there the
host would have to wait for the number of such rows.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.chunked import Head, Statistics, gradients, statistics
from rto_fast.kernels.common.workspace import (
    accumulator,
    chunk_rows,
    matmul_,
    padded,
    padded_bias,
    tile,
    workspace_bytes,
)

from .surrogate import Decisions, Surrogate, surrogate

# fewer rows make every GEMM a reading of the whole weight: measured on 2048 x 512 x 50304 on a CPU, three GEMMs a
# chunk take 1.3 of the time of two passes at 41 rows, 1.0 at 83 and 0.9 at 125
MIN_ROWS = 96


class Result(NamedTuple):
    loss: Tensor
    logprobs: Tensor
    entropy: Tensor | None
    grads: tuple[Tensor | None, Tensor | None, Tensor | None]
    """Of hidden, weight and bias."""


def ppo(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Decisions,
    s: Surrogate,
    head: Head,
    ppo_rows: ModuleType,
    entropy: bool,
    needs: tuple[bool, bool, bool],
    weight_grad: Tensor | None,
) -> Result:
    """Loss, statistics and the gradients in `needs`; that of the weight is added to `weight_grad` when there is one."""
    limit = workspace_bytes(hidden.device, head.workspace_mb)
    dtype = accumulator(hidden.dtype)
    c = chunk_rows(weight.shape[0], hidden.device, limit // dtype.itemsize)
    upcast = head.rows.operand(weight[:0]).dtype != weight.dtype
    if c < min(MIN_ROWS, hidden.shape[0]) or (upcast and 4 * weight.numel() > limit):
        return _two_passes(hidden, weight, bias, rows, s, head, entropy, needs, weight_grad)
    return _one_pass(hidden, weight, bias, rows, s, head, ppo_rows, entropy, needs, weight_grad, c)


def _two_passes(hidden, weight, bias, rows, s, head, entropy, needs, weight_grad) -> Result:
    hidden = _cleared(hidden, rows.live)
    stats = statistics(hidden, weight, bias, rows.target, head, entropy)
    loss, d_logprobs, d_entropy = surrogate(stats.logprobs, stats.entropy, rows, s)
    if not any(needs):
        return Result(loss.sum(), stats.logprobs, stats.entropy, (None, None, None))
    heard, target, of_heard = None, rows.target, stats
    if rows.live is None and d_entropy is None and not d_logprobs.all():
        heard = d_logprobs.nonzero()[:, 0]
        of_heard = Statistics(*(None if x is None else x[heard] for x in stats))
        hidden, target, d_logprobs = hidden[heard], target[heard], d_logprobs[heard]
    inputs = (hidden, weight, bias, target, head, of_heard, d_logprobs, d_entropy, needs, weight_grad)
    d_hidden, d_weight, d_bias = gradients(*inputs)
    if heard is not None and d_hidden is not None:
        d_hidden = d_hidden.new_zeros(len(loss), d_hidden.shape[1]).index_copy_(0, heard, d_hidden)
    return Result(loss.sum(), stats.logprobs, stats.entropy, (d_hidden, d_weight, d_bias))


def _cleared(hidden: Tensor, live: Tensor | None) -> Tensor:
    """Zeros in the rows that do not count: NaN times a gradient of 0 would be NaN."""
    return hidden if live is None else hidden.masked_fill(~live[:, None], 0.0)


def _one_pass(hidden, weight, bias, rows, s, head, ppo_rows, entropy, needs, weight_grad, c) -> Result:
    num_rows, vocab, operand = hidden.shape[0], weight.shape[0], head.rows.operand
    dtype, device = accumulator(hidden.dtype), hidden.device
    need_h, need_w, need_b = needs
    pitch = head.rows.PITCH
    buffer = torch.empty(min(c, num_rows) * padded(vocab, pitch), device=device, dtype=dtype)
    loss, logprobs = (torch.empty(num_rows, device=device, dtype=dtype) for _ in range(2))
    entropies = torch.empty_like(logprobs) if entropy else None
    d_hidden = torch.empty_like(hidden) if need_h else None
    # one rounding: into dW itself where its dtype is that of the sum, or where one chunk of rows is the whole sum
    w, b = operand(weight), padded_bias(bias, 0, vocab, dtype, pitch)
    direct = weight.dtype == dtype or (num_rows <= c and w.dtype == weight.dtype)
    d_weight = weight_grad
    if need_w and d_weight is None:
        d_weight = torch.empty_like(weight, dtype=weight.dtype if direct else dtype)
    d_bias = torch.zeros_like(bias, dtype=dtype) if need_b else None

    for t in range(0, num_rows, c):
        chunk = slice(t, min(t + c, num_rows))
        part = rows.rows(chunk.start, chunk.stop)
        h = _cleared(operand(hidden[chunk]), part.live)
        z = matmul_(tile(buffer, len(h), vocab, pitch), h, w.T)
        out = ppo_rows.ppo_rows_(z, b, head.transform, part, s, entropy, any(needs), h.dtype)
        loss[chunk], logprobs[chunk] = out.loss, out.logprobs
        if entropy:
            entropies[chunk] = out.entropy
        if not any(needs):
            continue
        dz, scale, order = out.d_logits, out.scale, None
        if out.silent is not None and out.silent.any():
            order = _to_the_front(dz, ~out.silent)
            dz, h, scale = dz[: len(order)], h[order], None if scale is None else scale[order]
        if need_h and scale is None and order is None and dz.dtype == d_hidden.dtype:
            torch.mm(dz, w, out=d_hidden[chunk])
        elif need_h:
            d_h = torch.mm(dz, w) if scale is None else torch.mm(dz, w).mul_(scale[:, None])
            if order is None:
                d_hidden[chunk] = d_h
            else:
                d_hidden[chunk].zero_()[order] = d_h.to(d_hidden.dtype)
        if need_w:
            matmul_(d_weight, dz.T, h if scale is None else h * scale[:, None], add=t > 0 or weight_grad is not None)
        if need_b:
            d_bias += dz.sum(0, dtype=dtype) if scale is None else dz.T @ scale
    if weight_grad is not None:
        d_weight = None
    elif need_w:
        d_weight = d_weight.zero_() if num_rows == 0 else d_weight
        d_weight = d_weight.to(weight.dtype)
    return Result(loss.sum(), logprobs, entropies, (d_hidden, d_weight, d_bias.to(bias.dtype) if need_b else None))


def _to_the_front(x: Tensor, chosen: Tensor) -> Tensor:
    """Move the chosen rows of x to its front, as few as can be; the rows that then lie there, by their old numbers."""
    count = int(chosen.sum())
    order = torch.arange(count, device=x.device)
    free = (~chosen[:count]).nonzero()[:, 0]
    order[free] = late = chosen[count:].nonzero()[:, 0] + count
    # one by one: a row of logits is long, and all at once would be copied twice
    for to, source in zip(free.tolist(), late.tolist(), strict=True):
        x[to] = x[source]
    return order
