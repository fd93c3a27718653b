"""Argument checks of the operators that take hidden states and a head's weight."""

import math

import torch
from torch import Tensor

from rto_fast.kernels.common.workspace import accumulator

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_head(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    workspace_mb: int | None,
    backend: str,
) -> None:
    """Raise a ValueError that names the argument, what it has to be, what it is and the remedy."""
    if hidden.dim() != 2:
        raise ValueError(
            f"{op}: hidden must be (rows, H), got {tuple(hidden.shape)}; flatten it with hidden.flatten(0, -2)"
        )
    width = hidden.shape[1]
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight must be (V, H) with V > 0 and H = {width}, got {tuple(weight.shape)}; pass lm_head.weight"
        )
    if hidden.dtype not in FLOATS:
        raise ValueError(f"{op}: hidden must be float32, bfloat16 or float16, got {hidden.dtype}; cast it")
    if hidden.dtype == torch.float64 and backend != "reference":
        raise ValueError(f"{op}: float64 runs on backend='reference' only, got backend {backend!r}; cast to float32")
    check_like(op, "weight", weight, weight.shape, hidden.dtype, hidden.device)
    if bias is not None:
        check_like(op, "bias", bias, (weight.shape[0],), hidden.dtype, hidden.device)
    if not 0.0 < temperature < math.inf:
        raise ValueError(
            f"{op}: temperature must be > 0 and finite, got {temperature}; for greedy decoding take the argmax instead"
        )
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"{op}: softcap must be > 0 and finite, got {softcap}; pass None for a head without one")
    if workspace_mb is not None and not workspace_mb >= 1:
        raise ValueError(
            f"{op}: workspace_mb must be at least 1, got {workspace_mb}; None picks 64 on CPU, 2048 on CUDA"
        )


def check_target(op: str, target: Tensor, num_rows: int, vocab: int, device: torch.device) -> None:
    """Raise a ValueError unless target is (num_rows,) int64 in [0, vocab).

    On CUDA its values are not looked at, for that would wait for the device: there such a row's log-prob is NaN.
    """
    check_like(op, "target", target, (num_rows,), torch.int64, device)
    if target.device.type == "cpu" and num_rows:
        low, high = (int(x) for x in target.aminmax())
        if low < 0 or high >= vocab:
            raise ValueError(
                f"{op}: target must lie in [0, V) = [0, {vocab}), got values from {low} to {high};"
                " drop rows without a target, or mask them"
            )


def check_weight_grad(op: str, weight_grad: Tensor | None, weight: Tensor) -> None:
    """Raise a ValueError unless weight_grad can take the sum of the gradients of a weight that asks for one."""
    if weight_grad is None:
        return
    check_like(op, "weight_grad", weight_grad, weight.shape, accumulator(weight.dtype), weight.device)
    if not weight_grad.is_contiguous():
        raise ValueError(f"{op}: weight_grad must be contiguous, got strides {weight_grad.stride()}")
    if weight_grad.requires_grad:
        raise ValueError(f"{op}: weight_grad is a buffer and must not require a gradient; pass weight_grad.detach()")
    if torch.is_grad_enabled() and not weight.requires_grad:
        raise ValueError(f"{op}: weight_grad needs a weight that requires a gradient, got a frozen one; pass None")


def check_like(op: str, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raise a ValueError unless x has this shape, dtype and device."""
    if x.shape != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}, got {x.dtype}; convert it with .to({dtype})")
    if x.device != device:
        raise ValueError(
            f"{op}: {name} must be on {device}, where hidden is, got {x.device}; move it with .to(hidden.device)"
        )
