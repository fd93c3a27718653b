"""Log-probs of a head as one autograd node, its backward recomputing the logits, over a backend's row functions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rto_fast.kernels.common.chunked import HeadPlan, gradients, statistics
from rto_fast.kernels.common.contract import Statistics


class LinearLogprob(torch.autograd.Function):
    """(logprobs, lse, entropy or None) of hidden (T, H): keeps four numbers per row for the backward, no logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        plan: HeadPlan,
        entropy: bool,
        weight_grad: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        stats = statistics(hidden, weight, bias, target, plan, entropy)
        ctx.save_for_backward(hidden, weight, bias, target, *stats)
        ctx.plan, ctx.weight_grad = plan, weight_grad
        ctx.set_materialize_grads(False)
        lse = stats.maximum + stats.log_sum
        ctx.mark_non_differentiable(lse)
        return stats.logprobs, lse, stats.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor | None, _: None, d_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, *stats = ctx.saved_tensors
        if d_logprobs is None and d_entropy is None:
            return (None,) * 7
        if d_logprobs is None:
            d_logprobs = torch.zeros_like(stats[0])
        grads = gradients(
            hidden,
            weight,
            bias,
            target,
            ctx.plan,
            Statistics(*stats),
            d_logprobs.contiguous(),
            None if d_entropy is None else d_entropy.contiguous(),
            ctx.needs_input_grad[:3],
            ctx.weight_grad,
        )
        return *grads, None, None, None, None
