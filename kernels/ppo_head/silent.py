"""Gradients without the rows that the clip has silenced, whose gradient is 0: fewer rows in every GEMM back.

For backends whose host knows these rows; on a GPU it would have to wait for their number.
"""

import torch
from torch import Tensor

from rto_fast.kernels.common import chunked as two_passes
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.contract import Statistics

from . import chunked as one_pass
from .surrogate import ChunkRows


def chunk_gradients_(
    out: ChunkRows,
    h: Tensor,
    w: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    add: bool,
) -> None:
    """Those of chunked.py; d logits are lost."""
    if out.silent is None or not out.silent.any():
        one_pass.chunk_gradients_(out, h, w, d_hidden, d_weight, d_bias, add)
        return
    heard = _to_the_front(out.d_logits, ~out.silent)
    scale = None if out.scale is None else out.scale[heard]
    out = out._replace(d_logits=out.d_logits[: len(heard)], scale=scale)
    d_heard = None if d_hidden is None else d_hidden.new_empty(len(heard), d_hidden.shape[1])
    one_pass.chunk_gradients_(out, h[heard], w, d_heard, d_weight, d_bias, add)
    if d_hidden is not None and d_heard is not None:
        d_hidden.zero_()[heard] = d_heard


def gradients(
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of common/chunked.py."""
    if d_entropy is not None or d_logprobs.all():
        inputs = (hidden, weight, bias, target, plan, stats, d_logprobs, d_entropy, needs, weight_grad)
        return two_passes.gradients(*inputs)
    heard = d_logprobs.nonzero()[:, 0]
    of_heard = (stats.each(lambda x: x[heard]), d_logprobs[heard], None)
    inputs = (hidden[heard], weight, bias, target[heard], plan, *of_heard, needs, weight_grad)
    d_heard, d_weight, d_bias = two_passes.gradients(*inputs)
    d_hidden = None if d_heard is None else torch.zeros_like(hidden).index_copy_(0, heard, d_heard)
    return d_hidden, d_weight, d_bias


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
