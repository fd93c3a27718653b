"""What the pytest-benchmark suites of the heads share: one shape, rivals after parity, ratios to bare GEMMs.

T rows, H hidden, V vocabulary. On a CPU T x H x V = 2048 x 512 x 50304 in float32, where half precision has no fast
GEMM; on a GPU 8192 x 2560 x 50304 in bfloat16.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from bench import machine, peers, timing
from bench.shapes import LAPTOP, PYTHIA, Inputs, head_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, SHAPE = (8192, PYTHIA) if DEVICE == "cuda" else (2048, LAPTOP)
ROUNDS = 10 if DEVICE == "cuda" else 2
# a rival in half precision rounds its logits
NATS = 0.3 if DEVICE == "cuda" else 1e-3
# what runs on a CPU too
ON_CPU = ("liger-kernel, scaled", "trl")


@cache
def inputs() -> Inputs:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    return head_inputs(SHAPE, ROWS, DEVICE, dtype)


def rival(name: str) -> peers.LogProb:
    """A rival's log-probs; the test is skipped, with the reason, where it is not installed or needs a GPU."""
    if name == "eager":
        return peers.eager
    if name == "torch.compile":
        if DEVICE == "cpu":
            pytest.skip("compiling for a CPU takes longer than everything else here")
        return torch.compile(peers.eager, dynamic=False)
    if DEVICE == "cpu" and name not in ON_CPU:
        pytest.skip(f"{name} needs a GPU")
    try:
        return peers.PEERS[name]()
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")


RIVALS = ("eager", "torch.compile", *(name for name in peers.PEERS if name not in peers.SUMMED))


def gemms(number: int) -> Callable[[], None]:
    """The first 1, 2 or 3 bare matrix products of a head, into buffers of their own: logits, d hidden, d weight."""
    hidden, weight, _ = inputs()
    z = torch.empty(ROWS, SHAPE.vocab, device=DEVICE, dtype=hidden.dtype)
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.T, out=z)
        if number > 1:
            torch.mm(z, weight, out=d_hidden)
        if number > 2:
            torch.mm(z.T, hidden, out=d_weight)

    return run


def leaves() -> tuple[Tensor, Tensor]:
    hidden, weight, _ = inputs()
    return hidden.detach().requires_grad_(), weight.detach().requires_grad_()


def agree(theirs: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bound: float) -> None:
    """Assert that the norm of every difference is at most `bound` of the norm of what was wanted."""
    for a, b in zip(theirs, wanted, strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error <= bound, f"computes something else: off by {error:.3g} of the norm"


def compare(benchmark, run: Callable[[], object], products: int, flops: float, label: str) -> None:
    """Time `run` and the bare GEMMs in turn; the ratio is taken within rounds, so that a busy machine slows both."""
    bare = gemms(products)
    seen: dict[str, list[float]] = {"GEMMs": [], "run": []}

    def timed(name: str, function: Callable[[], object]) -> None:
        start = time.perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seen[name].append(time.perf_counter() - start)

    timed("run", run)
    timed("GEMMs", bare)
    for times in seen.values():
        times.clear()
    benchmark.pedantic(lambda: timed("run", run), setup=lambda: timed("GEMMs", bare), rounds=ROUNDS)
    took = statistics.median(seen["run"])
    ratio = statistics.median(b / a for a, b in zip(*seen.values(), strict=True))
    peak = timing.peak_mib(run, DEVICE) if DEVICE == "cuda" else resident_peak_mib(run)
    hidden, weight, _ = inputs()
    found = {
        "ms": round(1e3 * took, 2),
        "TF/s": round(flops / took / 1e12, 3),
        "of bare GEMMs": round(ratio, 3),
        "peak MiB": round(peak),
    }
    shape = {"T": ROWS, "H": SHAPE.width, "V": SHAPE.vocab, "dtype": str(hidden.dtype)}
    size = {"FLOPs": flops, "bytes of inputs": hidden.nbytes + weight.nbytes, "bare GEMMs": products}
    benchmark.extra_info.update(machine.describe() | shape | size | found)
    print(f"\n{label} {shape}: {found}")


def resident_peak_mib(run: Callable[[], object]) -> float:
    """MiB of resident memory above the start, sampled every millisecond (Linux)."""

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    peak, done, before = 0.0, threading.Event(), resident()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1e-3):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    result = run()
    peak = max(peak, resident())
    done.set()
    thread.join()
    del result
    return peak - before
