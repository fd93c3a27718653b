"""Timing of rivals side by side in one process: interleaved, in an order that turns, with the cache cold or hot."""

import ctypes
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

Run = Callable[[], object]
# more than any L2 cache
FLUSH_BYTES = 256 << 20
# half a millisecond in which the host gets ahead of the device
HEAD_START_CYCLES = 1 << 20


class Timing(NamedTuple):
    """Milliseconds."""

    median: float
    p20: float
    p80: float


def interleave(runs: dict[str, Run], device: str, *, rounds: int, cold: bool, warmup: int = 2) -> dict[str, Timing]:
    """Time every run once a round; each round starts with another one, so that none always follows the same."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    flush = torch.empty(FLUSH_BYTES if device == "cuda" else 0, dtype=torch.int8, device=device)
    for i in range(-warmup, rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if cold:
                flush.zero_()
            took = once(runs[name], device)
            if i >= 0:
                times[name].append(took)
    return {name: _summary(x) for name, x in times.items()}


def once(run: Run, device: str) -> float:
    """Milliseconds of one run, its work on the device included."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # what is timed is the device's work: without it the first launch's way through Python would be part of it
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def call(run: Run, device: str, rounds: int = 20) -> Timing:
    """What a caller waits for one run and its result: the host's work and the device's."""
    times = []
    for i in range(-2, rounds):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 0:
            times.append(1e3 * (time.perf_counter() - start))
    return _summary(times)


def _summary(times: list[float]) -> Timing:
    ordered = sorted(times)
    return Timing(statistics.median(ordered), ordered[len(ordered) // 5], ordered[len(ordered) - 1 - len(ordered) // 5])


def peak_mib(run: Run, device: str) -> float | None:
    """MiB that a run holds at its highest above what was there before it; None where nothing counts them."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not sys.platform.startswith("linux"):
        return None
    run()  # what a first call keeps for good is not the run's
    ctypes.CDLL(None).malloc_trim(0)  # but what it freed may not be there already
    before, peak, done = _resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(0.0, peak - before)


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Device(NamedTuple):
    """What a run does on the GPU; None on a CPU."""

    launches: int | None
    us: float | None
    """Sum over its kernels: what is left when the host costs nothing."""


def on_device(run: Run, device: str) -> Device:
    """Count and time the kernels that a run starts; None too where the profiler may not look at the device."""
    if device != "cuda":
        return Device(None, None)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
    except RuntimeError:
        return Device(None, None)
    kernels = [
        event
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    ]
    # a profiler without access to the device sees nothing
    return Device(len(kernels), sum(event.device_time for event in kernels)) if kernels else Device(None, None)
