"""linear_logprob as operators of torch.library: what the public function calls while torch.compile traces it.

To a compiler each is one node with known shapes, so that the graph around it stays whole; what runs is what runs
without a compiler.
"""

from typing import Any

import torch
from torch import Tensor

from rto_fast.kernels.common.chunked import gradients, statistics
from rto_fast.kernels.common.contract import Statistics
from rto_fast.kernels.common.workspace import accumulator

from .prepare import prepare


@torch.library.custom_op("rto_fast::linear_logprob", mutates_args=())
def forward(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    workspace_mb: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of all rows, (T,) each, 0 where `mask` drops one; an entropy that nobody wants is (0,)."""
    options = (temperature, softcap, workspace_mb, backend)
    kept, wanted, index, plan = prepare(hidden, weight, target, bias, mask, *options)
    stats = statistics(kept, weight, bias, wanted, plan, entropy)
    if index is not None:
        stats = stats.each(lambda x: x.new_zeros(hidden.shape[0]).index_copy_(0, index, x))
    return (
        stats.logprobs,
        stats.maximum,
        stats.log_sum,
        stats.logprobs.new_empty(0) if stats.entropy is None else stats.entropy,
    )


@forward.register_fake
def _(hidden: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    entropy, shape, dtype = inputs[6], hidden.shape[:1], accumulator(hidden.dtype)
    rows = [hidden.new_empty(shape, dtype=dtype) for _ in range(3)]
    return rows[0], rows[1], rows[2], hidden.new_empty(shape if entropy else (0,), dtype=dtype)


@torch.library.custom_op("rto_fast::linear_logprob_backward", mutates_args=())
def backward(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    statistics: list[Tensor],
    slopes: list[Tensor],
    needs: list[bool],
    temperature: float,
    softcap: float | None,
    workspace_mb: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, empty where `needs` has none; slopes: of logprobs and, if any, entropy."""
    options = (temperature, softcap, workspace_mb, backend)
    kept, wanted, index, plan = prepare(hidden, weight, target, bias, mask, *options)
    rows = [x.contiguous() if index is None else x.index_select(0, index) for x in (*statistics, *slopes)]
    stats = Statistics(rows[0], rows[1], rows[2], rows[3] if len(statistics) > 3 else None)
    d_logprobs, *d_entropy = rows[len(statistics) :]
    inputs = (kept, weight, bias, wanted, plan, stats, d_logprobs, d_entropy[0] if d_entropy else None)
    d_hidden, d_weight, d_bias = gradients(*inputs, (needs[0], needs[1], needs[2]))
    if d_hidden is not None and index is not None:
        d_hidden = torch.zeros_like(hidden).index_copy_(0, index, d_hidden)
    nothing = hidden.new_empty(0)
    return tuple(nothing.clone() if x is None else x for x in (d_hidden, d_weight, d_bias))  # type: ignore[return-value]


@backward.register_fake
def _(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, mask: Tensor | None, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x) if need and x is not None else hidden.new_empty(0)
        for x, need in zip((hidden, weight, bias), inputs[2], strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, bias, mask, temperature, softcap, entropy, workspace_mb, backend = inputs
    ctx.save_for_backward(hidden, weight, target, bias, mask, *output)
    ctx.options, ctx.entropy = (temperature, softcap, workspace_mb, backend), entropy
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_logprobs: Tensor | None, d_maximum: None, d_log_sum: None, d_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden, weight, target, bias, mask, *stats = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    slopes = [torch.zeros_like(stats[0]) if d_logprobs is None else d_logprobs]
    if ctx.entropy and d_entropy is not None:
        slopes.append(d_entropy)
    stats = stats if ctx.entropy else stats[:3]
    found = backward(hidden, weight, target, bias, mask, stats, slopes, needs, *ctx.options)
    d_hidden, d_weight, d_bias = (x if need else None for x, need in zip(found, needs, strict=True))
    return (d_hidden, d_weight, None, d_bias, *(None,) * 6)


forward.register_autograd(_backward, setup_context=_setup)
