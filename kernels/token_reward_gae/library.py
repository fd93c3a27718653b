"""token_reward_gae as an operator of torch.library: what the public function calls while torch.compile traces it."""

from typing import Any

import torch
from torch import Tensor

from rto_fast.kernels import token_reward_gae as public
from rto_fast.kernels.token_reward_gae.spec import RewardSpec

TENSORS = tuple(name for name, kind in RewardSpec.__annotations__.items() if kind == Tensor | None)
NUMBERS = tuple(name for name, kind in RewardSpec.__annotations__.items() if kind is float)

Flat = tuple[list[Tensor | None], list[float], str, bool]
"""A RewardSpec as an operator's schema takes it."""


def flat(reward: RewardSpec) -> Flat:
    """The same reward in the types of a schema."""
    numbers = [float(getattr(reward, name)) for name in NUMBERS]
    return [getattr(reward, name) for name in TENSORS], numbers, reward.granularity, reward.shaping_only


def spec(tensors: list[Tensor | None], numbers: list[float], granularity: str, shaping_only: bool) -> RewardSpec:
    """The RewardSpec whose `flat` this is."""
    fields: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True)) | dict(zip(NUMBERS, numbers, strict=True))
    return RewardSpec(**fields, granularity=granularity, shaping_only=shaping_only)


@torch.library.custom_op("rto_fast::token_reward_gae", mutates_args=())
def forward(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    tensors: list[Tensor | None],
    numbers: list[float],
    granularity: str,
    shaping_only: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of TokenRewards."""
    reward = spec(tensors, numbers, granularity, shaping_only)
    columns = (old_logprobs, ref_logprobs, dpo_logprobs, values)
    return tuple(public.token_reward_gae(*columns, cu_seqlens, reward, backend=backend))  # type: ignore[return-value]


@forward.register_fake
def results(
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    dpo_logprobs: Tensor | None,
    values: Tensor,
    cu_seqlens: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors of the results' shapes."""
    rows = [torch.empty_like(values) for _ in range(3)]
    return rows[0], rows[1], rows[2], values.new_empty(cu_seqlens.shape[0] - 1, 3)
