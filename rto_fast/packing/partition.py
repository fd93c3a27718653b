"""One split of a step's items for all ranks, which every rank computes for itself."""

from collections.abc import Sequence
from typing import NamedTuple

from rto_fast.packing.pack import microbatches

SPAN = 8192
"""Rows of a sequence at which attention costs as much as all matrices do: about 2 H, at the widths of 7 B models."""


class Share(NamedTuple):
    """A rank's micro-batches."""

    groups: list[list[int]]
    idle: int
    """How many at the end are there so that all ranks have as many, and count for nothing"""


def partition(lengths: Sequence[int], max_rows: int, ranks: int, finer: bool = True) -> list[Share]:
    """Micro-batches of items of the given row counts (`microbatches`), for each rank as many.

    Each costs sum(n + n^2 / SPAN) over its items' rows n; the dearest goes to the rank that has least to do and still
    has room. An idle one holds the shortest item. The split depends on the arguments alone.

    finer  make micro-batches smaller where there would be none for some rank; without it they are those of one rank

    Raises ValueError as `microbatches` does.
    """
    if ranks == 1:
        return [Share(microbatches(lengths, max_rows), 0)]
    if not lengths:
        return [Share([], 0) for _ in range(ranks)]
    longest = max(lengths)
    if finer and longest <= max_rows:
        max_rows = max(longest, min(max_rows, -(-sum(lengths) // ranks)))
    groups = microbatches(lengths, max_rows)
    each = -(-len(groups) // ranks)
    costs = [sum(lengths[i] + lengths[i] ** 2 / SPAN for i in group) for group in groups]
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(groups)), key=lambda g: (-costs[g], g)):
        free = (r for r in range(ranks) if len(owned[r]) < each)
        owned[min(free, key=lambda r: (sum(costs[g] for g in owned[r]), r))].append(number)
    shortest = min(range(len(lengths)), key=lambda i: (lengths[i], i))
    shares = []
    for numbers in owned:
        idle = each - len(numbers)
        shares.append(Share([groups[g] for g in sorted(numbers)] + [[shortest]] * idle, idle))
    return shares
