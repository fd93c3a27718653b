"""From token lists to tensors, packed and padded, at a fixed number of rows in 1 to 4,096 sequences.

    python -m pytest bench/bench_packing.py -s

Three steps that every mini-batch takes, each beside what a padded trainer does: `pack` beside pad_sequence and its
masks; `microbatches` (which sequences go together) beside nothing, padding takes them as they come; `segment_gather`
(a mini-batch's rows of the rollout's arrays) beside rows of a padded matrix. Both ways must hold the same tokens,
targets, positions and rows before anything is timed. Lengths are uniform in 1 ... twice the mean.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.machine import describe
from rto_fast.packing import cumulative, microbatches, pack, segment_gather

ROWS = 32_768
VOCAB = 50_257
ROUNDS = 7


class Padded(NamedTuple):
    """(S, L)"""

    ids: Tensor
    attend: Tensor
    positions: Tensor
    actions: Tensor
    """Columns whose next token belongs to the answer."""


def pad(prompts: list[list[int]], responses: list[list[int]]) -> Padded:
    ids = pad_sequence([torch.tensor(p + r) for p, r in zip(prompts, responses, strict=True)], batch_first=True)
    first, last = (torch.tensor([len(x) for x in lists])[:, None] for lists in (prompts, responses))
    column, last = torch.arange(ids.shape[1])[None], first + last
    attend = column < last
    positions = (attend.cumsum(1) - 1).clamp(min=0)
    return Padded(ids, attend, positions, (column >= first - 1) & (column < last - 1))


def token_lists(num_sequences: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of ROWS rows in all; a quarter of each is prompt."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(num_sequences, generator=generator) + 1 / ROWS
    cuts = (share.cumsum(0) / share.sum() * (ROWS - num_sequences)).round().long().tolist()
    lengths = [b - a + 2 for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    tokens = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]
    first = [max(1, n // 4) for n in lengths]
    return [t[:n] for t, n in zip(tokens, first, strict=True)], [t[n:] for t, n in zip(tokens, first, strict=True)]


def in_turns(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each."""
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seen[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(x) for name, x in seen.items()}


@pytest.mark.parametrize("num_sequences", [1, 16, 256, 4096])
def test_packing(benchmark, num_sequences):
    prompts, responses = token_lists(num_sequences)
    batch = pack(prompts, responses)
    padded = pad(prompts, responses)
    decisions = padded.attend[:, 1:]
    assert batch.num_rows == ROWS
    assert torch.equal(batch.input_ids, padded.ids[:, :-1][decisions])
    assert torch.equal(batch.target_ids, padded.ids[:, 1:][decisions])
    assert torch.equal(batch.position_ids, padded.positions[:, :-1][decisions])
    assert torch.equal(batch.target_ids[batch.response_rows], padded.ids[:, 1:][padded.actions[:, :-1]])

    lengths = [len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True)]
    groups = microbatches(lengths, max(8192, max(lengths)))
    assert sorted(i for group in groups for i in group) == list(range(num_sequences))
    chosen = torch.randperm(num_sequences, generator=torch.Generator().manual_seed(1))[
        : -(-num_sequences // 4)
    ].tolist()
    offsets = cumulative([len(r) for r in responses])
    column, actions = torch.randn(len(batch.response_rows)), padded.actions[:, :-1]
    matrix = torch.zeros(actions.shape).masked_scatter(actions, column)

    def by_matrix() -> Tensor:
        return matrix[chosen][actions[chosen]]

    def by_segments() -> Tensor:
        return column[segment_gather(offsets, chosen)]

    assert torch.equal(by_segments(), by_matrix())
    took = in_turns(
        {
            "pack": lambda: pack(prompts, responses),
            "pad": lambda: pad(prompts, responses),
            "microbatches": lambda: microbatches(lengths, max(8192, max(lengths))),
            "segment_gather": by_segments,
            "padded gather": by_matrix,
        }
    )
    benchmark.pedantic(pack, args=(prompts, responses), rounds=ROUNDS)
    benchmark.extra_info.update(
        {f"{name}, ms": round(ms, 3) for name, ms in took.items()},
        rival="pack",
        shape=f"{ROWS} rows, {num_sequences} sequences",
        device="cpu",
        against=f"{took['pad'] / took['pack']:.2f} x padding",
        growth="sequences",
        size=num_sequences,
        machine=describe(),
    )
    print(f"\n{num_sequences} sequences, {ROWS} rows, {padded.ids.numel()} padded: {benchmark.extra_info['against']}")
