"""Which backend runs an operator, and its row functions."""

import importlib.util
import os

import torch

from rto_fast.kernels.common import native, rows
from rto_fast.kernels.common.contract import RowFunctions


def choose(
    op: str,
    device: torch.device,
    backend: str | None,
    backends: tuple[str, ...] = ("triton", "native", "reference"),
    dtype: torch.dtype = torch.float32,
) -> str:
    """Name the backend for tensors on `device`: triton on CUDA; on a CPU native where it is built, else reference.

    `backend` or the environment's RTO_FAST_BACKEND forces one; a ValueError says so when it cannot run here.
    Triton runs on CPU tensors only under its interpreter (TRITON_INTERPRET=1). What would run native in float64 runs
    on the reference, which is exact in it.
    """
    forced = backend or os.environ.get("RTO_FAST_BACKEND")
    if forced and forced not in backends:
        raise ValueError(f"{op}: backend must be one of {', '.join(backends)}, got {forced!r}")
    if forced == "triton":
        if importlib.util.find_spec("triton") is None:
            raise ValueError(f"{op}: backend 'triton' needs the triton package: pip install triton")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"{op}: backend 'triton' needs CUDA tensors, got {device.type}; TRITON_INTERPRET=1 runs it interpreted"
            )
    if forced == "native":
        if device.type != "cpu":
            raise ValueError(f"{op}: backend 'native' needs CPU tensors, got {device.type}; use 'triton'")
        if not native.available():
            raise ValueError(f"{op}: backend 'native' cannot run: {native.missing()}")
    if not forced:
        if device.type == "cuda" and "triton" in backends:
            forced = "triton"
        else:
            forced = "native" if device.type == "cpu" and "native" in backends and native.available() else "reference"
    return "reference" if forced == "native" and dtype == torch.float64 else forced


def row_functions(backend: str) -> RowFunctions:
    """The module whose functions work on a tile of logits."""
    if backend == "reference":
        return rows
    if backend == "native":
        from rto_fast.kernels.common import native_rows

        return native_rows
    from rto_fast.kernels.common import kernel

    return kernel


def table(device: torch.device) -> dict[str, str]:
    """The backend of every operator for tensors on `device`, for a run's start-up line."""
    ops = ("linear_logprob", "rto_score", "ppo_head", "preference_head", "token_reward_gae")
    chosen = {op: choose(op, device, None) for op in ops}
    # a rollout on a CPU attends by torch's own operator
    return chosen | ({"decode_attention": choose("decode_attention", device, None)} if device.type == "cuda" else {})
