"""decode_attention as an operator of torch.library: what the public function calls while torch.compile traces it."""

from typing import Any

import torch
from torch import Tensor

from rto_fast.kernels import decode_attention as public


@torch.library.custom_op("rto_fast::decode_attention", mutates_args=())
def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str | None,
) -> Tensor:
    """(B, N, D_v)."""
    options: dict[str, Any] = dict(window=window, softcap=softcap, backend=backend)
    return public.decode_attention(query, keys, values, lengths, scale, **options)


@forward.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(*query.shape[:2], values.shape[3])
