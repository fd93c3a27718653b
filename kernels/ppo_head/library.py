"""ppo_head as an operator of torch.library: what the public function calls while torch.compile traces it.

To a compiler it is one node with known shapes, so that the graph around it stays whole; what runs is what runs without
a compiler.
"""

from typing import Any

import torch
from torch import Tensor

from rto_fast.kernels.common.workspace import accumulator

from .chunked import ppo
from .contract import Inputs
from .prepare import prepare
from .surrogate import Surrogate


@torch.library.custom_op("rto_fast::ppo_head", mutates_args=())
def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor | None,
    loss_scale: Tensor | None,
    factor: float,
    needs: list[bool],
    clip: float,
    entropy_coef: float,
    kl_coef: float,
    kl: str,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    workspace_mb: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, logprobs, entropy, gradients of hidden, weight and bias); empty what is not wanted.

    The loss is scaled by `loss_scale`, or by the number `factor`.
    """
    rows = (target, old_logprobs, advantages, weights, ref_logprobs)
    scale = factor if loss_scale is None else loss_scale
    surrogate = Surrogate(clip, entropy_coef, kl_coef, kl)
    options = (temperature, softcap, workspace_mb, backend)
    made = prepare(hidden, weight, *rows, bias, scale, None, surrogate, *options)
    wanted = (needs[0], needs[1], needs[2])
    given = (made.hidden, weight, bias, made.decisions, surrogate, made.plan, made.ppo_rows, entropy, wanted, None)
    loss, logprobs, entropies, (d_hidden, d_weight, d_bias) = ppo(Inputs(*given))
    if d_hidden is not None and made.kept is not None:
        d_hidden = torch.zeros_like(hidden).index_copy_(0, made.kept, d_hidden)
    results = (
        loss,
        made.whole(logprobs),
        None if entropies is None else made.whole(entropies),
        d_hidden,
        d_weight,
        d_bias,
    )
    return tuple(loss.new_empty(0) if x is None else x for x in results)  # type: ignore[return-value]


@forward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    dtype, needs, entropy = accumulator(hidden.dtype), inputs[7], inputs[14]
    rows = hidden.new_empty(hidden.shape[:1], dtype=dtype)
    grads = (
        torch.empty_like(x) if need and x is not None else rows.new_empty(0)
        for x, need in zip((hidden, weight, bias), needs, strict=True)
    )
    return rows.new_empty(()), rows, torch.empty_like(rows) if entropy else rows.new_empty(0), *grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needs = inputs[10]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])


def _backward(ctx: Any, d_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = (d_loss * grad if need else None for grad, need in zip(ctx.saved_tensors, ctx.needs, strict=True))
    return (*grads, *(None,) * 17)


forward.register_autograd(_backward, setup_context=_setup)
