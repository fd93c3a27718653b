"""ppo_head as one autograd node whose gradient exists before the backward asks for it."""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rto_fast.kernels.linear_logprob.chunked import Head

from .chunked import ppo
from .surrogate import Decisions, Surrogate


class PPOLoss(torch.autograd.Function):
    """(loss, logprobs, entropy or None); the backward scales the gradients made by the forward, and hands them over."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Decisions,
        s: Surrogate,
        head: Head,
        ppo_rows: ModuleType,
        entropy: bool,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs = tuple(need and grad_enabled for need in ctx.needs_input_grad[:3])
        loss, logprobs, entropies, ctx.grads = ppo(hidden, weight, bias, rows, s, head, ppo_rows, entropy, needs)
        ctx.mark_non_differentiable(*(x for x in (logprobs, entropies) if x is not None))
        return loss, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss: Tensor, *_):
        if ctx.grads is None:
            raise RuntimeError(
                "ppo_head: second backward through one loss, but the first took its gradient; call the op again"
            )
        grads, ctx.grads = ctx.grads, None
        # the buffers are ours until they are handed over, so they are scaled in place; reading a CUDA scalar would wait
        if d_loss.device.type != "cpu" or d_loss != 1.0:
            for grad in grads:
                if grad is not None:
                    grad.mul_(d_loss)
        return *grads, None, None, None, None, None, None
