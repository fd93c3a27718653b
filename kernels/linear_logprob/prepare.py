"""What is checked and dropped before the first GEMM."""

import torch
from torch import Tensor

from rto_fast.kernels.common.checks import check_head, check_like, check_target
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.dispatch import choose, row_functions


def prepare(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    workspace_mb: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor | None, HeadPlan]:
    """(hidden, target, index, plan) of the rows that `mask` keeps, by their numbers `index`; None where all are."""
    backend = choose("linear_logprob", hidden.device, backend, dtype=hidden.dtype)
    index = None
    if mask is not None:
        check_like("linear_logprob", "mask", mask, hidden.shape[:1], torch.bool, hidden.device)
        check_like("linear_logprob", "target", target, hidden.shape[:1], torch.int64, hidden.device)
        index = mask.nonzero()[:, 0]
        hidden, target = hidden.index_select(0, index), target.index_select(0, index)
    check_head("linear_logprob", hidden, weight, bias, temperature, softcap, workspace_mb, backend)
    check_target("linear_logprob", target, hidden.shape[0], weight.shape[0], hidden.device)
    return hidden, target.contiguous(), index, HeadPlan(temperature, softcap, workspace_mb, row_functions(backend))
