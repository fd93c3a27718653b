"""The tensors that flow between the parts of the trainer.

T rows, S sequences, R rows that aim at a response token, V vocabulary.

Row t is a decision: its state ends in input_ids[t], its action is target_ids[t]. Log-prob, value, reward, advantage
and weight of that action all sit on row t. Only pack.py shifts tokens.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedBatch:
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
    response_rows: Tensor
    """(R,) int64, rising: the rows that are scored, rewarded and trained."""
    response_cu_seqlens: Tensor
    """(S+1,) int32: offsets of the sequences among these R rows, 0 ... R."""

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence; off the CPU this waits for the device."""
        return self.cu_seqlens.diff().tolist()

    @property
    def response_lengths(self) -> list[int]:
        """Response rows of each sequence; off the CPU this waits for the device."""
        return self.response_cu_seqlens.diff().tolist()

    def responses(self, per_row: Tensor) -> Tensor:
        """(R, ...): the response rows of (T, ...); differentiable."""
        return per_row[self.response_rows]

    def to(self, device: torch.device | str) -> "PackedBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "max_seqlen"}
        if torch.device(device).type == "cuda":  # only from pinned memory does a copy not wait
            moved = {n: x if x.is_cuda else x.pin_memory().to(device, non_blocking=True) for n, x in tensors.items()}
        else:
            moved = {name: x.to(device) for name, x in tensors.items()}
        return replace(self, **moved)
