"""Decoding steps recorded once as CUDA graphs and replayed: one launch in the place of a network's thousand.

A replay runs the same kernels on the same addresses. So whatever changes from step to step lies in tensors that stay,
and there are few numbers of rows: a batch is padded to the whole, its half, its quarter, ...
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEVICES = {"cuda"}
"""Where steps can be recorded."""
FAR = 0.1
"""Of the logits' standard deviation: no two ways of rounding the same step in half precision lie so far apart, another
step does."""


@dataclass(slots=True)
class _Graph:
    replay: Callable[[], object]
    logits: Tensor
    """(rows, V), written by each replay"""
    checked: bool = False


class Graphs:
    """The steps of one network, by their padded number of rows."""

    def __init__(self, max_rows: int, device: torch.device, name: str):
        self.name = name
        self.tokens, self.positions = torch.zeros(2, max_rows, dtype=torch.int64, device=device)
        self.sizes = [max_rows]
        while self.sizes[-1] > 1:
            self.sizes.append(-(-self.sizes[-1] // 2))
        self.recorded: dict[int, _Graph] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.failed = False

    def inputs(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B,) as they are to be given to the next step: padded, and where a replay finds them."""
        rows = len(tokens)
        size = min(size for size in self.sizes if size >= rows)
        self.tokens[:rows] = tokens
        self.positions[:rows] = positions
        # a place without a row writes and reads the position where its next row begins, and writes there first
        self.positions[rows:size] = 0
        return self.tokens[:size], self.positions[:size]

    def run(self, size: int, step: Callable[[], Tensor | None]) -> Tensor | None:
        """The logits of the step whose inputs are in place; None where `step` gives none."""
        if self.failed:
            return step()
        try:
            return self._run(size, step)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"rollout: the steps of {self.name} cannot be recorded ({reason}); they are launched one by one",
                stacklevel=2,
            )
            self.failed = True
            self.recorded.clear()
            return step()

    def _run(self, size: int, step: Callable[[], Tensor | None]) -> Tensor | None:
        """The first of its size is taken as it is, then recorded. The next is taken both ways: one that depended on
        something that the recording holds still would be found."""
        graph = self.recorded.get(size)
        if graph is None:
            logits = step()
            if logits is not None:
                self.recorded[size] = _Graph(*_record(step, self.pool))
            return logits
        graph.replay()
        if not graph.checked:
            graph.checked, wanted = True, step()
            if wanted is None or not _close(graph.logits, wanted):
                raise RuntimeError("a replay computes something else")
        return graph.logits


def _record(step: Callable[[], Tensor | None], pool: Any) -> tuple[Callable[[], object], Tensor]:
    """(replay, what it writes to). RuntimeError where the step waits for the device.

    pool  of memory, which graphs share: what one computes on its way is done with when another is replayed
    """
    graph = torch.cuda.CUDAGraph()
    # a recording that fails leaves its own stream as the current one
    with torch.cuda.stream(torch.cuda.current_stream()):
        with torch.cuda.graph(graph, pool=pool):
            logits = step()
    assert logits is not None
    return graph.replay, logits


def _close(ours: Tensor, theirs: Tensor) -> bool:
    a, b = (x.float().nan_to_num() for x in (ours, theirs))
    return bool((a - b).abs().max() <= FAR * b.std())
