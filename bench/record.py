"""What every pytest-benchmark test of this folder does: time a rival beside a baseline, and note what was measured.

The baseline runs before each round of the rival, so that a busy machine slows both. bench.report reads what is noted.
"""

import statistics
from collections.abc import Callable

import torch

from bench import machine, timing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def beside(
    benchmark,
    run: timing.Run,
    baseline: timing.Run,
    *,
    rival: str,
    shape: str,
    of: str,
    rounds: int = 7,
    flops: float | None = None,
    moved: float | None = None,
    memory: bool = True,
    **numbers: object,
) -> float:
    """Time `run` and `baseline` in turn; the ratio of their medians.

    `of` names the baseline; flops and moved (bytes) of one run become TFLOP/s and GB/s; `numbers` are noted as given.
    """
    times: list[float] = []

    def one_of_each():
        times.append(timing.once(baseline, DEVICE))

    benchmark.pedantic(_waiting(run), setup=one_of_each, rounds=rounds, warmup_rounds=1)
    ms = 1e3 * statistics.median(benchmark.stats.stats.data)
    ratio = ms / statistics.median(times[1:])
    note = dict(rival=rival, shape=shape, device=DEVICE, ms=ms, of=of, ratio=ratio)
    if flops is not None:
        note["tflops"] = flops / ms / 1e9
    if moved is not None:
        note["gb_per_s"] = moved / ms / 1e6
    if memory:
        note["peak_mib"] = timing.peak_mib(run, DEVICE)
    benchmark.extra_info.update(note | numbers | {"machine": machine.describe()})
    return ratio


def _waiting(run: timing.Run) -> Callable[[], object]:
    if DEVICE == "cpu":
        return run

    def waited():
        out = run()
        torch.cuda.synchronize()
        return out

    return waited
