"""Token lists to packed tensors: the only place that shifts tokens, and that knows where a response starts.

T rows, S sequences, R response rows.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from rto_fast.types import PackedBatch, Rows


def pack(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], average: str = "token"
) -> tuple[PackedBatch, Rows]:
    """Lay S sequences prompt + response end to end as decisions, on the CPU.

    A sequence of n tokens gives n - 1 rows: row t holds token t and aims at token t + 1. The rows that aim at a
    response token are trained: weight 1 (`average="token"`: every token counts alike) or 1/len(response)
    (`average="sequence"`: every sequence counts alike); all others have weight 0. A prompt needs at least one token
    (BOS will do), since the first response token is decided in some state.

    Sequences keep their order. Neighbours of equal length are attended to in one call on a CPU, so callers that may
    choose the order (see `microbatches`) sort by length.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"pack: prompts and responses must pair up, got {len(prompts)} and {len(responses)}")
    if average not in ("token", "sequence"):
        raise ValueError(f"pack: average must be 'token' or 'sequence', got {average!r}")
    inputs: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    index: list[int] = []
    lengths: list[int] = []
    for s, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            empty = "response" if prompt else "prompt"
            raise ValueError(f"pack: sequence {s} has an empty {empty}; drop it (a prompt needs at least one token)")
        tokens = [*prompt, *response]
        first = len(inputs) + len(prompt) - 1
        inputs += tokens[:-1]
        targets += tokens[1:]
        positions += range(len(tokens) - 1)
        weights += [0.0] * (len(prompt) - 1)
        weights += [1.0 if average == "token" else 1.0 / len(response)] * len(response)
        index += range(first, first + len(response))
        lengths.append(len(tokens) - 1)
    batch = PackedBatch(
        input_ids=torch.tensor(inputs, dtype=torch.int64),
        target_ids=torch.tensor(targets, dtype=torch.int64),
        position_ids=torch.tensor(positions, dtype=torch.int64),
        cu_seqlens=cumulative(lengths),
        max_seqlen=max(lengths, default=0),
        weights=torch.tensor(weights, dtype=torch.float32),
    )
    return batch, Rows(torch.tensor(index, dtype=torch.int64), cumulative([len(r) for r in responses]))


def cumulative(lengths: Sequence[int]) -> torch.Tensor:
    """Offsets (S+1,) int32 of S segments laid end to end: 0, l_0, l_0 + l_1, ..."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def microbatches(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """Split items of the given row counts into groups of at most `max_rows` rows: first fit, longest first.

    Returns lists of item numbers; within a group the longest item comes first and equal lengths are neighbours. The
    split depends on the lengths alone, so it is the same on every machine. Losses are sums over rows, so a gradient
    does not depend on it. Raises ValueError when one item alone is longer than the budget.
    """
    groups: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[item] > max_rows:
            raise ValueError(
                f"microbatch_rows must hold the longest sequence: {lengths[item]} rows, got {max_rows}; "
                "raise --microbatch-rows or lower --data.max-length"
            )
        for g, room in enumerate(free):
            if room >= lengths[item]:
                groups[g].append(item)
                free[g] -= lengths[item]
                break
        else:
            groups.append([item])
            free.append(max_rows - lengths[item])
    return groups


def segment_gather(offsets: torch.Tensor, sequences: Sequence[int]) -> torch.Tensor:
    """Row numbers (on the CPU) of the given sequences, in that order, in an array with `offsets` (S+1,) on the CPU."""
    bounds = offsets.tolist()
    parts = [torch.arange(bounds[s], bounds[s + 1]) for s in sequences]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
