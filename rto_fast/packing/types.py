"""The tensors that flow between the parts of the trainer.

T rows, S sequences, R rows that are trained (responses), V vocabulary.

Row t is a decision: its state ends in input_ids[t], its action is target_ids[t]. Log-prob, value, reward, advantage
and weight of that action all sit on row t. Only packing.py shifts tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Movable:
    """`to(device)` for a dataclass of tensors."""

    def to(self, device: torch.device | str) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if hasattr(v, "to")})


@dataclass(frozen=True, slots=True)
class PackedBatch(_Movable):
    """S sequences laid end to end as T decisions, without padding."""

    input_ids: Tensor
    """(T,) int64: the last token of each row's state."""
    target_ids: Tensor
    """(T,) int64: the action taken on each row."""
    position_ids: Tensor
    """(T,) int64: restarts at 0 in each sequence."""
    cu_seqlens: Tensor
    """(S+1,) int32: row offsets of the sequences, 0 ... T."""
    max_seqlen: int
    """Rows of the longest sequence, known on the host so that nothing has to wait for the device."""
    weights: Tensor
    """(T,) float32: 0 = not trained (prompt); 1 = token mean; 1/len = sequence mean."""

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1


@dataclass(frozen=True, slots=True)
class Rows(_Movable):
    """The response rows of a PackedBatch, in order: what is scored, rewarded and trained."""

    index: Tensor
    """(R,) int64: row numbers in the packed batch."""
    cu_seqlens: Tensor
    """(S+1,) int32: offsets of the sequences among these R rows."""
