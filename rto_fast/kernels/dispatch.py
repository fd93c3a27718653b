"""Which backend runs an operator."""

import importlib.util
import os

import torch


def choose(
    op: str, device: torch.device, backend: str | None, backends: tuple[str, ...] = ("triton", "reference")
) -> str:
    """Name the backend for tensors on `device`: triton on CUDA, reference elsewhere.

    `backend` or the environment's RTO_FAST_BACKEND forces one; a ValueError says so when it cannot run here.
    Triton runs on CPU tensors only under its interpreter (TRITON_INTERPRET=1).
    """
    forced = backend or os.environ.get("RTO_FAST_BACKEND")
    if not forced:
        return "triton" if device.type == "cuda" and "triton" in backends else "reference"
    if forced not in backends:
        raise ValueError(f"{op}: backend must be one of {', '.join(backends)}, got {forced!r}")
    if forced == "triton":
        if importlib.util.find_spec("triton") is None:
            raise ValueError(f"{op}: backend 'triton' needs the triton package: pip install triton")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"{op}: backend 'triton' needs CUDA tensors, got {device.type}; TRITON_INTERPRET=1 runs it interpreted"
            )
    return forced


def table(device: torch.device) -> dict[str, str]:
    """The backend of every operator for tensors on `device`, for a run's start-up line."""
    ops = ("linear_logprob", "rto_score", "ppo_head", "preference_head", "token_reward_gae")
    return {op: choose(op, device, None) for op in ops}
