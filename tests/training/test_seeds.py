"""Random streams: a function of the seed and of every part of their name, and of nothing else."""

import torch

from rto_fast.training.seeds import derive, permutation


def test_streams_differ_by_seed_and_by_every_part_of_their_name():
    names = [(), ("rto",), ("rto", 0), ("rto", 1), ("rto", 0, 0), ("rto", 0, 1), ("dpo", 0), ("rto", "0")]
    seeds = [derive(seed, *name) for seed in range(3) for name in names]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**63 for s in seeds)
    assert derive(1, "rto", 7) == derive(1, "rto", 7)


def test_an_order_is_every_number_once_whatever_was_drawn_before():
    first = permutation(50, 3, "sft", 0)
    assert sorted(first) == list(range(50)) and first != list(range(50))
    torch.rand(7)
    assert permutation(50, 3, "sft", 0) == first
    assert len({tuple(permutation(50, seed, "sft", epoch)) for seed in range(3) for epoch in range(3)}) == 9
