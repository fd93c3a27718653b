"""One split for all ranks: every item is somebody's, all have as many micro-batches, and the work is even."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.packing import microbatches, partition
from rto_fast.packing.partition import SPAN

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def cost(lengths, groups) -> float:
    return sum(lengths[i] + lengths[i] ** 2 / SPAN for group in groups for i in group)


@given(LENGTHS, st.integers(60, 300), st.integers(1, 9), st.booleans())
def test_every_item_counts_once_and_all_ranks_have_as_many_micro_batches(lengths, max_rows, ranks, finer):
    shares = partition(lengths, max_rows, ranks, finer)
    assert len(shares) == ranks and len({len(share.groups) for share in shares}) == 1
    counted = [group for share in shares for group in share.groups[: len(share.groups) - share.idle]]
    assert sorted(i for group in counted for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= max_rows for share in shares for group in share.groups)
    assert shares == partition(lengths, max_rows, ranks, finer)
    if not finer:
        assert sorted(counted) == sorted(microbatches(lengths, max_rows))


@given(LENGTHS, st.integers(60, 300))
def test_of_one_rank_it_is_microbatches(lengths, max_rows):
    (share,) = partition(lengths, max_rows, 1)
    assert share == (microbatches(lengths, max_rows), 0)


def test_one_micro_batch_is_split_where_all_are_to_have_work():
    (a, b) = partition([10] * 16, 1000, 2)
    assert len(a.groups) == len(b.groups) == 1 and a.idle == b.idle == 0
    assert len(a.groups[0]) == len(b.groups[0]) == 8
    one, other = partition([10] * 16, 1000, 2, finer=False)
    assert (len(one.groups[0]), one.idle) == (16, 0) and other == ([[0]], 1)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_dearest_ranks_work_is_little_more_than_the_mean(ranks):
    g = torch.Generator().manual_seed(ranks)
    lengths = torch.randint(16, 2048, (512,), generator=g).tolist()
    shares = partition(lengths, 4096, ranks)
    costs = [cost(lengths, share.groups[: len(share.groups) - share.idle]) for share in shares]
    assert max(costs) < 1.05 * sum(costs) / ranks


def test_a_sequence_that_fits_no_micro_batch_is_named():
    with pytest.raises(ValueError, match="microbatch_rows must hold the longest sequence: 20 rows, got 10"):
        partition([3, 20], 10, 2)
