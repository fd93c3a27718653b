"""A key/value cache whose rows have lengths of their own: no left padding, and rows can leave and enter.

B rows, N key/value heads, D head dim, C capacity in positions. Each layer holds keys and values (B, N, C, D);
row b's position p is always at [b, :, p].
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class RowCache(Cache):
    """Replaces transformers' dynamic cache for rows of unequal length.

    Two ways of writing, chosen before each model call: `begin_prefill` appends whole prompts as new rows,
    `begin_step` appends one position to each of the first `num_rows` rows. Layers are allocated at their first
    write, so heads and dims may differ from layer to layer. Numbers are kept in the dtype of the arithmetic: under
    autocast rotary embeddings leave keys in float32, and attention would round them all again at every step.
    """

    def __init__(self, max_rows: int, capacity: int, limit: int, whole: bool = False):
        """`capacity` in positions to begin with; `limit`: as many as a row will ever have.

        whole  a step is given all positions there are, so that shapes stay as they are, and not the filled ones
        """
        super().__init__(layers=[])
        self.whole = whole
        self.max_rows, self.capacity, self.limit = max_rows, min(capacity, limit), limit
        self.storage: dict[int, list[Tensor]] = {}
        """[keys, values] of each layer."""
        self._first_row, self._row_step = 0, 1
        self._positions: Tensor | None = None
        self._num_rows = self._width = 0
        self._index: dict[int, Tensor] = {}

    def begin_prefill(self, first_row: int, row_step: int) -> None:
        """The next call's sequences go to rows first_row, first_row + row_step, ..."""
        self._first_row, self._row_step, self._positions, self._width = first_row, row_step, None, 0

    def begin_step(self, positions: Tensor, width: int) -> None:
        """positions (B,) int64: where each row writes; width: the longest row, counting what it is about to write."""
        self._positions, self._num_rows, self._width = positions, positions.shape[0], width
        self._index.clear()
        if width > self.capacity:
            self._grow(max(width, min(self.capacity * 3 // 2, self.limit)))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx not in self.storage:
            # zeros, not empty: a masked position still enters the attention's sum as 0 * value, and 0 * nan is nan
            self.storage[layer_idx] = [
                x.new_zeros(self.max_rows, x.shape[1], self.capacity, x.shape[3], dtype=arithmetic_of(x))
                for x in (key_states, value_states)
            ]
        keys, values = self.storage[layer_idx]
        if self._positions is None:
            stop, length = self._first_row + key_states.shape[0] * self._row_step, key_states.shape[2]
            rows = slice(self._first_row, stop, self._row_step)
            keys[rows, :, :length], values[rows, :, :length] = key_states, value_states
            return key_states, value_states
        for store, new in ((keys, key_states), (values, value_states)):
            lines = new.reshape(-1, new.shape[3]).to(store.dtype)
            store.view(-1, store.shape[3]).index_copy_(0, self._lines(store.shape[1]), lines)
        stop = self.capacity if self.whole else self._width
        return keys[: self._num_rows, :, :stop], values[: self._num_rows, :, :stop]

    def _lines(self, num_heads: int) -> Tensor:
        """(B * N,) line numbers of this step's writes in a layer seen as (max_rows * N * C, D)."""
        assert self._positions is not None  # between begin_step and the next begin_prefill
        if num_heads not in self._index:
            heads = torch.arange(self._num_rows * num_heads, device=self._positions.device).view(-1, num_heads)
            self._index[num_heads] = (heads * self.capacity + self._positions[:, None]).view(-1)
        return self._index[num_heads]

    def move_rows(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` over rows `target` (int64), all of them read before any is written."""
        for layer in self.storage.values():
            for store in layer:
                store[target, :, : self._width] = store[source, :, : self._width]

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Let rows `target` (int64) begin with what rows `source` hold in their first `length` positions."""
        for layer in self.storage.values():
            for store in layer:
                store[target, :, :length] = store[source, :, :length]

    def _grow(self, capacity: int) -> None:
        for layer in self.storage.values():
            for i, old in enumerate(layer):
                layer[i] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                layer[i][:, :, : self.capacity] = old
        self.capacity = capacity

    # what transformers asks a cache for when it builds a mask itself (prefill)
    def get_seq_length(self, layer_idx: int = 0) -> int:
        if self._positions is None:
            return 0
        return (self.capacity if self.whole else self._width) - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


def arithmetic_of(x: Tensor) -> torch.dtype:
    """What is multiplied in where `x` is: autocast's type, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
