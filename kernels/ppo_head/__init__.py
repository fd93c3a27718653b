"""PPO's clipped policy loss from hidden states, with its gradient computed in the forward."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import library
from .autograd import PPOLoss
from .prepare import prepare
from .reference import ppo_head_reference
from .surrogate import Surrogate

__all__ = ["PPOHead", "ppo_head", "ppo_head_reference"]


class PPOHead(NamedTuple):
    """A loss and what it was made of."""

    loss: Tensor
    """() float32: a sum over rows; differentiable."""
    logprobs: Tensor
    """(R,) float32 of the current policy, detached; 0 on rows of weight 0."""
    entropy: Tensor | None
    """(R,) float32, detached; 0 on rows of weight 0; None unless entropy_coef or return_entropy asks for it."""


def ppo_head(
    hidden: Tensor,  # (R, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (R,) int64
    old_logprobs: Tensor,  # (R,) float32, as are all that follow
    advantages: Tensor,
    weights: Tensor,
    *,
    clip: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    kl: str = "k3",
    ref_logprobs: Tensor | None = None,  # (R,) float32
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    loss_scale: Tensor | float = 1.0,  # () float32
    weight_grad: Tensor | None = None,  # (V, H) float32
    workspace_mb: int | None = None,
    backend: str | None = None,
) -> PPOHead:
    """Sum over rows of the clipped surrogate of PPO (arXiv:1707.06347, eq. 7), minus entropy, plus KL:

        loss = sum_t w_t ( max(-A_t r_t, -A_t clip(r_t, 1 - clip, 1 + clip)) - entropy_coef H_t + kl_coef KL_t )
        r_t = exp(logp_t - old_t);  KL_t with d = logp_t - ref_t: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d

    with logp_t and H_t those of `linear_logprob`, whose bias, temperature, softcap, dtypes and precision hold here.
    A loss is a sum: whatever it is to be averaged over belongs in `weights`. A row of weight 0 adds exactly nothing to
    the loss or to a gradient, whatever it holds (NaN included), and reports 0.

    `loss_scale` multiplies the loss, on the device: 1 over the global sum of weights, a share of the gradient
    accumulation, a scaler's factor.

    Differentiable in hidden, weight and bias through `loss`. Their gradients are computed in the forward and scaled,
    on the device, by the gradient of the loss: a loss can be differentiated once (a second time is a RuntimeError).

    `weight_grad` is the caller's buffer for dW (a main_grad). The forward already adds to it, in float32, whatever
    dtype the weight has, so no (V, H) temporary exists and weight.grad stays alone; the backward must then come with a
    gradient of 1, all scaling being in `loss_scale`: with any other the hidden states' gradient is NaN (an error on
    CPU), for dW would be wrong. Under no_grad nothing is added.

    Cost: 6 R V H FLOPs, all in the forward: 4 R V H with a frozen weight, 2 R V H under no_grad. On CPU a row whose
    gradient is 0, such as one that the clip has silenced, costs 2 V H of them. Memory: one buffer of logits of at most
    `workspace_mb` (default: 64 MiB on CPU, 2 GiB on CUDA), all V columns of a chunk of rows, and the gradients;
    half-precision weights without a `weight_grad` add a float32 (V, H) sum when there are several chunks. A workspace
    too small for 96 rows, or half precision on CPU with a large weight, costs a fourth GEMM (the logits are
    recomputed).

    torch.compile takes it as one node of its graph (`rto_fast::ppo_head`); with `weight_grad`, which the forward writes
    to, it breaks the graph.

    Deterministic; chunks depend on V, the device and `workspace_mb` only.

    Raises ValueError as `linear_logprob` does, for an unknown `kl`, and for kl_coef without ref_logprobs.
    """
    surrogate = Surrogate(clip, entropy_coef, kl_coef, kl)
    with_entropy = return_entropy or entropy_coef != 0.0
    options = (temperature, softcap, workspace_mb, backend)
    if torch.compiler.is_compiling() and weight_grad is None:
        needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
        scale = (loss_scale, 1.0) if isinstance(loss_scale, Tensor) else (None, loss_scale)
        rows = (target, old_logprobs, advantages, weights, ref_logprobs)
        rest = (temperature, softcap, with_entropy, workspace_mb, backend)
        loss, logprobs, entropy, *_ = library.forward(hidden, weight, bias, *rows, *scale, needs, *surrogate, *rest)
        return PPOHead(loss, logprobs, entropy if with_entropy else None)
    rows = (target, old_logprobs, advantages, weights, ref_logprobs)
    made = prepare(hidden, weight, *rows, bias, loss_scale, weight_grad, surrogate, *options)
    inputs = (made.hidden, weight, bias, made.decisions, surrogate, made.plan, made.ppo_rows)
    loss, logprobs, entropy = PPOLoss.apply(*inputs, with_entropy, torch.is_grad_enabled(), weight_grad)
    return PPOHead(loss, made.whole(logprobs), None if entropy is None else made.whole(entropy))
