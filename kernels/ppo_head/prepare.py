"""What is checked and dropped before the first GEMM."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.checks import check_head, check_like, check_target, check_weight_grad
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.dispatch import choose, row_functions
from rto_fast.kernels.common.workspace import accumulator

from . import rows
from .contract import PPORows
from .surrogate import Decisions, Surrogate


class Prepared(NamedTuple):
    """The rows that count, and how they are worked on."""

    hidden: Tensor
    decisions: Decisions
    surrogate: Surrogate
    plan: HeadPlan
    ppo_rows: PPORows
    live: Tensor
    """(R,) bool: rows whose weight is not 0"""
    kept: Tensor | None
    """The numbers of the rows that were kept; None where none was dropped"""

    def whole(self, x: Tensor) -> Tensor:
        """(R,): x of the kept rows, and 0 of the others."""
        if self.kept is not None:
            return x.new_zeros(self.live.shape).index_copy_(0, self.kept, x)
        return x if self.decisions.live is None else x.masked_fill(~self.live, 0.0)


def prepare(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor | None,
    bias: Tensor | None,
    loss_scale: Tensor | float,
    weight_grad: Tensor | None,
    surrogate: Surrogate,
    temperature: float,
    softcap: float | None,
    workspace_mb: int | None,
    backend: str | None,
) -> Prepared:
    """Check what ppo_head was given; rows of weight 0 go, as far as the host knows of them without waiting."""
    backend = choose("ppo_head", hidden.device, backend, dtype=hidden.dtype)
    check_head("ppo_head", hidden, weight, bias, temperature, softcap, workspace_mb, backend)
    check_like("ppo_head", "target", target, hidden.shape[:1], torch.int64, hidden.device)
    dtype = accumulator(hidden.dtype)
    given = {"old_logprobs": old_logprobs, "advantages": advantages, "weights": weights, "ref_logprobs": ref_logprobs}
    for name, x in given.items():
        if x is not None:
            check_like("ppo_head", name, x, hidden.shape[:1], dtype, hidden.device)
    clip, _, kl_coef, kl = surrogate
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
    live, kept = weights != 0, None
    if hidden.device.type == "cpu":
        # a row of weight 0 may hold anything
        check_target("ppo_head", target[live], int(live.sum()), weight.shape[0], hidden.device)
    if backend == "triton":
        # hidden states are cleared chunk by chunk: a copy of all of them would grow with R
        decisions = decisions._replace(target=target.masked_fill(~live, 0), live=live)
    elif not live.all():
        kept = live.nonzero()[:, 0]
        hidden = hidden.index_select(0, kept)
        decisions = decisions.each(partial(torch.index_select, dim=0, index=kept))
    plan = HeadPlan(temperature, softcap, workspace_mb, row_functions(backend))
    return Prepared(hidden, decisions, surrogate, plan, _ppo_rows(backend), live, kept)


def _ppo_rows(backend: str) -> PPORows:
    if backend == "reference":
        return rows
    if backend == "native":
        from . import native

        return native
    from . import kernel

    return kernel
