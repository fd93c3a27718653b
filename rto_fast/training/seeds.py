"""Random streams that are functions of the run's seed and of where they are used, so nothing has to be stored."""

import hashlib

import torch


def derive(seed: int, *where: str | int) -> int:
    """A 63-bit seed for the stream named by `where`, e.g. derive(0, "rto", "rollout", 7)."""
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permutation(count: int, seed: int, *where: str | int) -> list[int]:
    """A random order of range(count), on the CPU whatever the device."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, *where))).tolist()
