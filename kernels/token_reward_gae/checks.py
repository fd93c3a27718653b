"""Argument checks of the operators that turn log-probs into rewards."""

import math

import torch
from torch import Tensor

from rto_fast.kernels.token_reward_gae.spec import GRANULARITIES, RewardSpec

# row numbers are int32, and a block of rows may reach past the last one
MAX_ROWS = 2**31 - 2**16


def check_rows(op: str, values: Tensor, cu: Tensor, **logprobs: Tensor | None) -> None:
    """Raise a ValueError unless values and all `logprobs` are (R,) of one float dtype, and cu_seqlens splits R rows."""
    if values.ndim != 1:
        raise ValueError(f"{op}: values must be (R,), got {_shape(values)}; take column 0 of (R, 1)")
    num_rows = values.shape[0]
    if num_rows > MAX_ROWS:
        raise ValueError(f"{op}: at most {MAX_ROWS} rows fit int32 offsets, got {num_rows}; score in several calls")
    for name, tensor in {**logprobs, "values": values}.items():
        if tensor is None:
            continue
        check_vector(op, name, tensor, "R", num_rows, values.device)
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{op}: {name} must be float32, got {tensor.dtype}; compute it in float32 at its head, "
                "a cast here comes after the rounding"
            )
        if tensor.dtype != values.dtype:
            raise ValueError(f"{op}: {name} must be {values.dtype} as values is, got {tensor.dtype}")
    if cu.ndim != 1 or cu.shape[0] < 1 or cu.dtype != torch.int32:
        raise ValueError(f"{op}: cu_seqlens must be (S+1,) int32, got {_shape(cu)} {cu.dtype}")
    if cu.device != values.device:
        raise ValueError(f"{op}: cu_seqlens must be on {values.device} as values is, got {cu.device}")
    # on CUDA the same check would wait for the device
    if cu.device.type == "cpu":
        falls = (cu.diff() < 0).nonzero()
        if len(falls):
            i = int(falls[0])
            raise ValueError(f"{op}: cu_seqlens must never fall, got {int(cu[i])} then {int(cu[i + 1])} at {i}")
        if cu[0] != 0 or cu[-1] != num_rows:
            raise ValueError(
                f"{op}: cu_seqlens must start at 0 and end at R = {num_rows}, got {int(cu[0])} ... {int(cu[-1])}"
            )


def check_reward(op: str, reward: RewardSpec, num_rows: int, num_sequences: int, device: torch.device) -> None:
    """Raise a ValueError that names the first field out of its range, what it has to be, what it is."""
    for name in ("beta_1", "beta_2", "beta_3"):
        number = getattr(reward, name)
        if not math.isfinite(number):
            raise ValueError(f"{op}: {name} must be finite, got {number}")
    for name in ("clip", "score_clip"):
        number = getattr(reward, name)
        if not number > 0:
            raise ValueError(f"{op}: {name} must be > 0, got {number}; math.inf switches it off")
    for name in ("gamma", "lam"):
        number = getattr(reward, name)
        if not 0 <= number <= 1:
            raise ValueError(f"{op}: {name} must be in [0, 1], got {number}")
    if reward.granularity not in GRANULARITIES:
        raise ValueError(f"{op}: granularity must be one of {', '.join(GRANULARITIES)}, got {reward.granularity!r}")
    if reward.granularity == "sentence" and reward.sentence_ends is None:
        raise ValueError(f"{op}: granularity 'sentence' needs sentence_ends (R,) bool, got None")
    if reward.beta_3 != 0 and reward.scores is None:
        raise ValueError(f"{op}: beta_3 = {reward.beta_3} needs scores (S,), got None; set beta_3=0 to go without")
    for name in ("scores", "terminal", "counted", "sentence_ends"):
        tensor = getattr(reward, name)
        if tensor is not None:
            letter, size = ("R", num_rows) if name == "sentence_ends" else ("S", num_sequences)
            check_vector(op, name, tensor, letter, size, device)
            if name in ("counted", "sentence_ends") and tensor.dtype != torch.bool:
                raise ValueError(f"{op}: {name} must be bool, got {tensor.dtype}; pass {name}.bool()")


def check_vector(op: str, name: str, tensor: Tensor, letter: str, size: int, device: torch.device) -> None:
    if tensor.shape != (size,):
        raise ValueError(f"{op}: {name} must be ({letter},) = ({size},), got {_shape(tensor)}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device} as values is, got {tensor.device}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
