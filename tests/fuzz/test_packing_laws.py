"""Laws of packing: order and grouping move rows about and change none of them."""

import math
import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.packing import cumulative, microbatches, pack, segment_gather
from tests.fuzz.laws import SEEDS, thorough

LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=7)
AVERAGES = st.sampled_from(["token", "sequence"])


def tokens(lengths, seed):
    draw = random.Random(seed)
    return [[[draw.randrange(100) for _ in range(n)] for n in pair] for pair in lengths]


def rows_of(pairs, average):
    """Each sequence's rows as (input, target, position, weight) and which of them are the response's."""
    batch = pack([p for p, _ in pairs], [r for _, r in pairs], average)
    columns = [batch.input_ids, batch.target_ids, batch.position_ids, batch.weights]
    cut = lambda x, offsets: [x[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]  # noqa: E731
    offsets = batch.cu_seqlens.tolist()
    responses = cut(batch.response_rows, batch.response_cu_seqlens.tolist())
    relative = [[i - a for i in part] for part, a in zip(responses, offsets[:-1], strict=True)]
    return list(zip(*(cut(x, offsets) for x in columns), relative, strict=True))


@given(LENGTHS, AVERAGES, SEEDS)
@thorough
def test_a_permutation_of_the_sequences_permutes_their_rows(lengths, average, seed):
    pairs = tokens(lengths, seed)
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    packed = rows_of(pairs, average)
    assert rows_of([pairs[i] for i in order], average) == [packed[i] for i in order]


@given(LENGTHS, AVERAGES, SEEDS, st.integers(0, 7))
@thorough
def test_a_split_of_the_batch_changes_no_row(lengths, average, seed, at):
    pairs = tokens(lengths, seed)
    parts = [part for part in (pairs[:at], pairs[at:]) if part]
    assert rows_of(pairs, average) == [row for part in parts for row in rows_of(part, average)]


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(40, 90), SEEDS)
@thorough
def test_microbatches_hold_every_item_once_and_do_not_depend_on_the_order(lengths, budget, seed):
    groups = microbatches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in g) <= budget for g in groups)
    # first fit: no two groups could be one, and there are at most twice as many as needed
    sums = [sum(lengths[i] for i in g) for g in groups]
    assert all(a + b > budget for i, a in enumerate(sums) for b in sums[i + 1 :])
    assert len(groups) <= 2 * math.ceil(sum(lengths) / budget)
    shuffled = random.Random(seed).sample(lengths, len(lengths))
    again = [[shuffled[i] for i in g] for g in microbatches(shuffled, budget)]
    assert again == [[lengths[i] for i in g] for g in groups]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), SEEDS)
@thorough
def test_gathering_and_gathering_back_is_nothing(lengths, seed):
    order = random.Random(seed).sample(range(len(lengths)), len(lengths))
    back = sorted(range(len(order)), key=order.__getitem__)
    there = segment_gather(cumulative(lengths), order)
    home = segment_gather(cumulative([lengths[i] for i in order]), back)
    assert there[home].tolist() == list(range(sum(lengths)))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), SEEDS)
@thorough
def test_sequence_sums(lengths, seed):
    x = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed))
    offsets = cumulative(lengths)
    bounds = offsets.tolist()
    sums = sequence_sums(x, offsets)
    exact = [math.fsum(x[a:b].tolist()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert sums.dtype == torch.float32 and torch.allclose(sums.double(), torch.tensor(exact).double(), rtol=1e-7)
    # a sequence's sum does not know its neighbours, to the bit
    order = random.Random(seed).sample(range(len(lengths)), len(lengths))
    moved = sequence_sums(x[segment_gather(offsets, order)], cumulative([lengths[i] for i in order]))
    assert torch.equal(moved, sums[order])
