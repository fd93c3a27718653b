"""rto_score as an operator of torch.library: what the public function calls while torch.compile traces it.

A model is a list of tensors, (hidden, weight, bias or None), and one of numbers, (softcap or 0, temperature).
"""

from typing import Any

import torch
from torch import Tensor

from rto_fast.kernels import rto_score as public
from rto_fast.kernels.token_reward_gae.library import spec

from .reference import FactoredLogits

Flat = tuple[list[Tensor | None], list[float]]


def flat(models: list[FactoredLogits]) -> Flat:
    """Models in the types of a schema."""
    tensors = [x for model in models for x in (model.hidden, model.weight, model.bias)]
    numbers = [float(x) for model in models for x in (model.softcap or 0.0, model.temperature)]
    return tensors, numbers


def _models(tensors: list[Tensor | None], numbers: list[float]) -> list[FactoredLogits]:
    found = []
    for i in range(len(tensors) // 3):
        hidden, weight, bias = tensors[3 * i : 3 * i + 3]
        assert hidden is not None and weight is not None  # `flat` wrote them
        softcap, temperature = numbers[2 * i : 2 * i + 2]
        found.append(FactoredLogits(hidden, weight, bias, softcap or None, temperature))
    return found


@torch.library.custom_op("rto_fast::rto_score", mutates_args=())
def forward(
    tensors: list[Tensor | None],
    numbers: list[float],
    target: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor | None,
    reward_tensors: list[Tensor | None],
    reward_numbers: list[float],
    granularity: str,
    shaping_only: bool,
    workspace_mb: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of RTOScore without the values; (0,) where the DPO model is not read."""
    policy, reference, *dpo = _models(tensors, numbers)
    reward = spec(reward_tensors, reward_numbers, granularity, shaping_only)
    inputs = (policy, reference, dpo[0] if dpo else None, target, values, cu_seqlens, reward)
    found = public.rto_score(*inputs, rows=rows, workspace_mb=workspace_mb, backend=backend)
    dpo_logprobs = values.new_empty(0) if found.dpo_logprobs is None else found.dpo_logprobs
    # of one stacked GEMM they are views, which an operator must not return
    old_logprobs, ref_logprobs = found.old_logprobs.clone(), found.ref_logprobs.clone()
    return (
        old_logprobs,
        ref_logprobs,
        dpo_logprobs.clone(),
        found.rewards,
        found.advantages,
        found.returns,
        found.moments,
    )


@forward.register_fake
def _(
    tensors: list[Tensor | None],
    numbers: list[float],
    target: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    rows = [torch.empty_like(values) for _ in range(5)]
    dpo = torch.empty_like(values) if len(tensors) > 6 else values.new_empty(0)
    return rows[0], rows[1], dpo, *rows[2:], values.new_empty(cu_seqlens.shape[0] - 1, 3)
