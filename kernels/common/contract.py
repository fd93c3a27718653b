"""What a backend brings to the passes over the vocabulary, and what they pass on; rows.py says what a tile is."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Transform = tuple[float, float | None]
"""Temperature and softcap: what raw logits go through."""


class Statistics(NamedTuple):
    """(T,) each, in the accumulator's dtype."""

    logprobs: Tensor
    maximum: Tensor
    log_sum: Tensor
    """log sum_j exp(z_j - maximum)."""
    entropy: Tensor | None

    def each(self, f: Callable[[Tensor], Tensor]) -> "Statistics":
        """Of f(x) for every tensor x."""
        entropy = None if self.entropy is None else f(self.entropy)
        return Statistics(f(self.logprobs), f(self.maximum), f(self.log_sum), entropy)

    def rows(self, start: int, stop: int) -> "Statistics":
        """Of some of the rows."""
        return self.each(lambda x: x[start:stop])


class RowFunctions(Protocol):
    """A module that works on a tile: rows.py (torch), which says what each does, native_rows.py or kernel.py."""

    PITCH: int

    def operand(self, x: Tensor) -> Tensor: ...

    def new_state(
        self, num_rows: int, entropy: bool, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, ...]: ...

    def fold(
        self, z: Tensor, bias: Tensor | None, head: Transform, target: Tensor, first: int, state: tuple[Tensor, ...]
    ) -> None: ...

    def finish(self, state: tuple[Tensor, ...]) -> Statistics: ...

    def row_scale(
        self, log_s: Tensor, d_logprob: Tensor, d_entropy: Tensor | None, head: Transform
    ) -> Tensor | None: ...

    def d_logits_(
        self,
        z: Tensor,
        bias: Tensor | None,
        head: Transform,
        target: Tensor,
        first: int,
        dtype: torch.dtype,
        stats: Statistics,
        d_logprob: Tensor,
        d_entropy: Tensor | None,
    ) -> Tensor: ...
