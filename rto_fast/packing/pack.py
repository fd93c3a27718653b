"""Token lists to packed tensors: the only place that shifts tokens, and that knows where a response starts.

T rows, S sequences, R response rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from rto_fast.packing.types import PackedBatch


def pack(prompts: Sequence[list[int]], responses: Sequence[list[int]], average: str = "token") -> PackedBatch:
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
    flat: list[int] = []
    for s, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            empty = "response" if prompt else "prompt"
            raise ValueError(f"pack: sequence {s} has an empty {empty}; drop it (a prompt needs at least one token)")
        flat += prompt
        flat += response
    # one list becomes a tensor, the rest is computed from lengths: lists for all six would take three times as long
    tokens, answers = torch.tensor(flat, dtype=torch.int64), [len(r) for r in responses]
    lengths = [len(p) + a - 1 for p, a in zip(prompts, answers, strict=True)]
    offsets, num_rows = cumulative(lengths), torch.tensor(lengths, dtype=torch.int64)
    starts = offsets[:-1].long()

    def spread(per_sequence: torch.Tensor) -> torch.Tensor:
        return per_sequence.repeat_interleave(num_rows)

    # sequence s has s more tokens than rows before it
    first_token = starts + torch.arange(len(lengths))
    is_input, is_target = (torch.ones(len(flat), dtype=torch.bool) for _ in range(2))
    is_input[first_token + num_rows] = False
    is_target[first_token] = False
    positions = torch.arange(sum(lengths)) - spread(starts)
    trained = positions >= spread(num_rows - torch.tensor(answers, dtype=torch.int64))
    share = torch.tensor([1.0 if average == "token" else 1.0 / a for a in answers], dtype=torch.float32)
    return PackedBatch(
        input_ids=tokens[is_input],
        target_ids=tokens[is_target],
        position_ids=positions,
        cu_seqlens=offsets,
        max_seqlen=max(lengths, default=0),
        weights=spread(share) * trained,
        response_rows=trained.nonzero()[:, 0],
        response_cu_seqlens=cumulative(answers),
    )


def pack_whole(sequences: Sequence[list[int]]) -> PackedBatch:
    """S sequences with a row for every token, the last one's too, on the CPU; the response row of each is that last.

    A score of a whole text belongs to the state after its last token. Targets are never read (the last is 0) and every
    weight is 0.
    """
    batch = pack([s[:1] for s in sequences], [[*s[1:], 0] for s in sequences])
    last, one_each = batch.cu_seqlens[1:].long() - 1, cumulative([1] * len(sequences))
    return replace(batch, weights=torch.zeros_like(batch.weights), response_rows=last, response_cu_seqlens=one_each)


def select(batch: PackedBatch, sequences: Sequence[int]) -> tuple[PackedBatch, torch.Tensor]:
    """Some sequences of a batch on the CPU, in the given order, as a batch of their own; and their response rows'
    places (R',) int64 among the batch's R, to gather what belongs to them.

    The batch is, bit for bit, what `pack` makes of those sequences.
    """
    at, places = (segment_gather(x, sequences) for x in (batch.cu_seqlens, batch.response_cu_seqlens))
    lengths, answers = ([x[s] for s in sequences] for x in (batch.lengths, batch.response_lengths))
    offsets, chosen = cumulative(lengths), torch.tensor(sequences, dtype=torch.int64)
    # a response row keeps its distance from its sequence's first row
    moved = (offsets[:-1] - batch.cu_seqlens[chosen]).long().repeat_interleave(torch.tensor(answers, dtype=torch.int64))
    few = PackedBatch(
        input_ids=batch.input_ids[at],
        target_ids=batch.target_ids[at],
        position_ids=batch.position_ids[at],
        cu_seqlens=offsets,
        max_seqlen=max(lengths, default=0),
        weights=batch.weights[at],
        response_rows=batch.response_rows[places] + moved,
        response_cu_seqlens=cumulative(answers),
    )
    return few, places


def segment_gather(offsets: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
    """Numbers (int64, on the CPU) of the given segments' items, in that order, in an array with `offsets` (S+1,)."""
    chosen = torch.tensor(segments, dtype=torch.int64)
    starts, lengths = offsets[:-1].long()[chosen], offsets.diff().long()[chosen]
    ends = lengths.cumsum(0)
    return (starts - ends + lengths).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))


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
