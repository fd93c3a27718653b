"""What the pytest-benchmark suites of the heads share: one shape, rivals after parity, ratios to bare GEMMs.

T rows, H hidden, V vocabulary. On a CPU T x H x V = 2048 x 512 x 50304 in float32, where half precision has no fast
GEMM; on a GPU 8192 x 2560 x 50304 in bfloat16.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from bench import peers
from bench.record import DEVICE, beside
from bench.shapes import LAPTOP, PYTHIA, Inputs, head_inputs

ROWS, SHAPE = (8192, PYTHIA) if DEVICE == "cuda" else (2048, LAPTOP)
GROWING_ROWS = (2048, 8192, 32768) if DEVICE == "cuda" else (512, 2048, 8192)
GROWING_VOCABULARIES = (50304, 201216) if DEVICE == "cuda" else (12576, 50304)
ROUNDS = 10 if DEVICE == "cuda" else 4
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
    """The first 1 to 4 bare matrix products of a head, into buffers: logits, d hidden, d weight, logits again."""
    hidden, weight, _ = inputs()
    z = torch.empty(ROWS, SHAPE.vocab, device=DEVICE, dtype=hidden.dtype)
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.T, out=z)
        if number > 1:
            torch.mm(z, weight, out=d_hidden)
        if number > 2:
            torch.mm(z.T, hidden, out=d_weight)
        if number > 3:
            torch.mm(hidden, weight.T, out=z)

    return run


def leaves() -> tuple[Tensor, Tensor]:
    hidden, weight, _ = inputs()
    return hidden.detach().requires_grad_(), weight.detach().requires_grad_()


def agree(run: Callable[[], tuple[Tensor, ...]], ours: Callable[[], tuple[Tensor, ...]], bound: float) -> None:
    """Assert that the norm of every difference is at most `bound` of the norm of what was wanted."""
    try:
        theirs = run()
    except ImportError as error:
        pytest.skip(f"not installed whole: {error}")
    for a, b in zip(theirs, ours(), strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error <= bound, f"computes something else: off by {error:.3g} of the norm"


def compare(benchmark, run: Callable[[], object], products: int, rival: str, what: str) -> None:
    """Time `run` beside as many bare GEMMs as it needs, and note both."""
    hidden, weight, _ = inputs()
    ratio = beside(
        benchmark,
        run,
        gemms(products),
        rival=rival,
        shape=f"{SHAPE.width}x{SHAPE.vocab} T={ROWS}, {what}",
        of=("the bare GEMM", "two GEMMs", "three GEMMs", "four GEMMs")[products - 1],
        rounds=ROUNDS,
        flops=products * SHAPE.gemm_flops(ROWS),
        dtype=str(hidden.dtype),
        flop_count=products * SHAPE.gemm_flops(ROWS),
        bytes_of_inputs=hidden.nbytes + weight.nbytes,
    )
    print(f"\n{rival}, {what}: {ratio:.2f} x {products} bare GEMMs")
