"""PPO's clipped policy loss from hidden states, with its gradient computed in the forward."""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.checks import check_head, check_like, check_target, check_weight_grad
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.dispatch import choose, row_functions
from rto_fast.kernels.common.workspace import accumulator

from . import rows
from .autograd import PPOLoss
from .contract import PPORows
from .reference import ppo_head_reference
from .surrogate import Decisions, Surrogate

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

    Deterministic; chunks depend on V, the device and `workspace_mb` only.

    Raises ValueError as `linear_logprob` does, for an unknown `kl`, and for kl_coef without ref_logprobs.
    """
    backend = choose("ppo_head", hidden.device, backend, dtype=hidden.dtype)
    check_head("ppo_head", hidden, weight, bias, temperature, softcap, workspace_mb, backend)
    check_like("ppo_head", "target", target, hidden.shape[:1], torch.int64, hidden.device)
    dtype = accumulator(hidden.dtype)
    given = {"old_logprobs": old_logprobs, "advantages": advantages, "weights": weights, "ref_logprobs": ref_logprobs}
    for name, x in given.items():
        if x is not None:
            check_like("ppo_head", name, x, hidden.shape[:1], dtype, hidden.device)
    if kl not in ("k1", "k2", "k3"):
        raise ValueError(f"ppo_head: kl must be one of k1, k2, k3, got {kl!r}")
    if kl_coef and ref_logprobs is None:
        raise ValueError(f"ppo_head: kl_coef = {kl_coef} needs ref_logprobs, got None; pass them or set kl_coef=0")
    if not clip > 0.0:
        raise ValueError(f"ppo_head: clip must be > 0, got {clip}; float('inf') turns clipping off")

    check_weight_grad("ppo_head", weight_grad, weight)
    if isinstance(loss_scale, Tensor):
        check_like("ppo_head", "loss_scale", loss_scale, (), dtype, hidden.device)

    scaled = weights.detach() * loss_scale
    decisions = Decisions(target, old_logprobs, advantages, scaled, ref_logprobs if kl_coef else None)
    decisions = decisions.each(lambda x: x.detach().contiguous())
    live, index = weights != 0, None
    if hidden.device.type == "cpu":
        # a row of weight 0 may hold anything
        check_target("ppo_head", target[live], int(live.sum()), weight.shape[0], hidden.device)
    if backend == "triton":
        # hidden states are cleared chunk by chunk: a copy of all of them would grow with R
        decisions = decisions._replace(target=target.masked_fill(~live, 0), live=live)
    elif not live.all():
        index = kept = live.nonzero()[:, 0]
        hidden = hidden.index_select(0, kept)
        decisions = decisions.each(lambda x: x.index_select(0, kept))
    plan = HeadPlan(temperature, softcap, workspace_mb, row_functions(backend))
    loss, logprobs, entropy = PPOLoss.apply(
        hidden,
        weight,
        bias,
        decisions,
        Surrogate(clip, entropy_coef, kl_coef, kl),
        plan,
        _ppo_rows(backend),
        return_entropy or entropy_coef != 0.0,
        torch.is_grad_enabled(),
        weight_grad,
    )
    if index is not None:
        logprobs, entropy = (
            None if x is None else x.new_zeros(weights.shape).index_copy_(0, index, x) for x in (logprobs, entropy)
        )
    elif backend == "triton":
        logprobs, entropy = (None if x is None else x.masked_fill(~live, 0.0) for x in (logprobs, entropy))
    return PPOHead(loss, logprobs, entropy)


def _ppo_rows(backend: str) -> PPORows:
    if backend == "reference":
        return rows
    if backend == "native":
        from . import native

        return native
    from . import kernel

    return kernel
