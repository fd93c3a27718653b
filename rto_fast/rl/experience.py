"""What an iteration of PPO learns from: answers as packed rows, and five numbers for each of them.

R response rows, S answers.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.packing import PackedBatch, select

COLUMNS = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns")


class Batch(NamedTuple):
    """A micro-batch of answers, on the device of the policy."""

    packed: PackedBatch
    weights: Tensor
    """(R,) float32, as are the next five"""
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class Experience:
    """Columns are (R,) float32 over all response rows, on the policy's device."""

    packed: PackedBatch
    """All answers, on the CPU"""
    kept: Tensor
    """(S,) bool on the CPU: the answers that are learned from"""
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    """The critic's, before the first step"""
    advantages: Tensor
    returns: Tensor

    def batches(self, groups: list[list[int]]) -> list[Batch]:
        """Micro-batches of the given answers."""
        device = self.old_logprobs.device
        made = []
        for group in groups:
            packed, places = select(self.packed, group)
            packed, places = packed.to(device), places.to(device)
            columns = (getattr(self, name)[places] for name in COLUMNS)
            made.append(Batch(packed, packed.responses(packed.weights), *columns))
        return made

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, on the devices where they are; `from_tensors` makes the same again."""
        packed = {name: getattr(self.packed, name) for name in PACKED}
        return packed | {name: getattr(self, name) for name in ("kept", *COLUMNS)}


PACKED = [f.name for f in fields(PackedBatch) if f.name != "max_seqlen"]


def from_tensors(tensors: dict[str, Tensor], device: torch.device) -> Experience:
    """The Experience whose `tensors` these are, its columns on `device`."""
    packed = {name: tensors[name].cpu() for name in PACKED}
    longest = int(packed["cu_seqlens"].diff().max())
    columns = {name: tensors[name].to(device) for name in COLUMNS}
    return Experience(PackedBatch(**packed, max_seqlen=longest), tensors["kept"].cpu(), **columns)
