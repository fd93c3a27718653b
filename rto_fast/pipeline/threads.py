"""Whether the threads that torch was given help at present: beside other work on the same cores they wait."""

import time
from collections.abc import Callable, Sequence

import torch

GRAIN = 32768
"""Numbers for which torch gives an element-wise operator one thread more."""
SECONDS, ROUNDS = 0.1, 4
"""A measurement takes so long where nothing waits, in so many turns of each number of threads."""
CLEARLY = 1.5
"""So many times as long is no chance."""


def advice(threads: int, measure: Callable[[Sequence[int]], dict[int, float]] | None = None) -> str | None:
    """A line where fewer threads are clearly faster now, else None. Nothing is changed: the last bits of a run's
    results depend on its number of threads, so that it is the user's to choose.

    measure  from numbers of threads, the seconds that the same work takes with each
    """
    fewer = sorted({1, max(1, threads // 2)} - {threads})
    if not fewer:
        return None
    seconds = (measure or _measure)([*fewer, threads])
    best = min(fewer, key=seconds.__getitem__)
    if seconds[threads] < CLEARLY * seconds[best]:
        return None
    return (
        f"threads: {threads} are slower than {best} at present ({1e3 * seconds[threads]:.3g} ms against "
        f"{1e3 * seconds[best]:.3g} ms for the same small operator): other work runs on these cores; stop it, or start "
        f"a run with OMP_NUM_THREADS={best} in front of its command"
    )


def _measure(counts: Sequence[int]) -> dict[int, float]:
    """The mean over all windows, for an operator on the same numbers, split so that each call takes so many threads.

    Many short calls one after another, as in training: what costs is that every call waits for its last thread.
    """
    numbers = torch.zeros(2 * max(counts) * GRAIN)
    parts = {count: numbers.split(count * GRAIN) for count in counts}
    for count in counts:  # starts the threads
        torch.sigmoid(parts[count][0], out=parts[count][0])
    spent, times = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0)
    for count in [*counts] * ROUNDS:
        until = spent[count] + SECONDS / ROUNDS / len(counts)
        while spent[count] < until:
            started = time.perf_counter()
            for part in parts[count]:
                torch.sigmoid(part, out=part)
            spent[count] += time.perf_counter() - started
            times[count] += 1
    return {count: spent[count] / times[count] for count in counts}
