"""ppo_head as one autograd node whose gradient exists before the backward asks for it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rto_fast.kernels.common.chunked import HeadPlan

from .chunked import ppo
from .contract import Inputs, PPORows
from .surrogate import Decisions, Surrogate


class PPOLoss(torch.autograd.Function):
    """(loss, logprobs, entropy or None); the backward scales the gradients made by the forward, and hands them over."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Decisions,
        s: Surrogate,
        plan: HeadPlan,
        ppo_rows: PPORows,
        entropy: bool,
        grad_enabled: bool,
        weight_grad: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        need_h, need_w, need_b = (need and grad_enabled for need in ctx.needs_input_grad[:3])
        needs = (need_h, need_w, need_b)
        inputs = Inputs(hidden, weight, bias, rows, s, plan, ppo_rows, entropy, needs, weight_grad)
        loss, logprobs, entropies, ctx.grads = ppo(inputs)
        ctx.summed = weight_grad is not None
        ctx.mark_non_differentiable(*(x for x in (logprobs, entropies) if x is not None))
        return loss, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "ppo_head: second backward through one loss, but the first took its gradient; call the op again"
            )
        grads, ctx.grads = ctx.grads, None
        if ctx.summed:
            d_loss = _must_be_one(d_loss)
        # the buffers are ours until they are handed over, so they are scaled in place; reading a CUDA scalar would wait
        if d_loss.device.type != "cpu" or d_loss != 1.0:
            for grad in grads:
                if grad is not None:
                    grad.mul_(d_loss)
        return *grads, *(None,) * 7


def _must_be_one(d_loss: Tensor) -> Tensor:
    """d_loss, or NaN where dW, which the forward has added to the caller's sum, would have needed another factor."""
    if d_loss.device.type == "cpu" and d_loss != 1.0:
        raise RuntimeError(
            f"ppo_head: with weight_grad the loss must be differentiated with a gradient of 1, got {float(d_loss)};"
            " dW is summed already: pass the factor as loss_scale"
        )
    return torch.where(d_loss == 1.0, d_loss, torch.nan)
