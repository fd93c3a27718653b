"""python -m bench.gpu --out DIR: parity at real shapes, compute-sanitizer, then every operator beside its peers.

Writes DIR/results.json and DIR/RESULTS.md after every section. Ends with 1 when one of our own checks failed.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from bench import machine, peers
from bench.gpu import decoding, extremes, parity, sanitizer, speed, targets
from bench.gpu.log import Log
from bench.shapes import LLAMA, PYTHIA, QWEN, TINY

PARTS = ("parity", "sanitizer", "bench")


def sections(log: Log, device: str, parts: list[str], smoke: bool):
    """(name, function) of each section, in the order of what is worth knowing first."""
    shapes = (TINY,) if smoke else (PYTHIA, LLAMA, QWEN)
    rows, many = (40, 72) if smoke else (8192, 32768)
    rounds = 2 if smoke else 10
    compiled = not smoke
    watches: list[sanitizer.Watch] = []
    if "sanitizer" in parts and device == "cuda":
        yield "compute-sanitizer, started", partial(sanitizer.start, log, watches)
    if "parity" in parts:
        for shape in shapes:
            yield f"parity {shape.name}", partial(parity.heads, log, shape, rows, device)
        yield "parity at the edges", partial(parity.edges, log, device, *((257, 40) if smoke else (50257,)))
        several = (90, 257, 1) if smoke else (700, 50257, 64)
        yield "parity of options", partial(extremes.options, log, device, *several)
        if not smoke:
            yield "parity of gradients at the edges", partial(extremes.edges, log, device, *several[1:])
        yield "parity far from 0", partial(extremes.far_logits, log, device, several[1])
        cases = ((600, 40), (512, 1)) if smoke else ((1 << 20, 65537), (131072, 1), (1 << 20, 1024), (7, 3))
        yield "parity of rewards", partial(parity.sequences, log, device, cases)
        if device == "cuda":
            yield "waiting for the device", partial(parity.waits, log)
        for cache in decoding.TINY if smoke else decoding.REAL:
            yield f"decoding {cache.name}", partial(decoding.operator, log, cache, device, rounds=rounds)
        yield "decoding steps", partial(decoding.steps, log, device, smoke)
        huge = (80, 257, 1) if smoke else (15200, 151936, 9216)
        yield "parity beyond int32", partial(extremes.beyond_int32, log, device, *huge)
    if watches:
        yield "compute-sanitizer, collected", partial(sanitizer.collect, log, watches, 90.0)
    if "bench" in parts:
        yield "rewards", partial(speed.rewards, log, 128 if smoke else 32768, 4 if smoke else 64, device, rounds=rounds)
        options = dict(rounds=rounds, all_rivals=True, compiled=compiled)
        for shape in shapes:
            yield f"scoring {shape.name}", partial(speed.forward, log, shape, rows, device, **options)
        for shape in shapes:
            yield f"ppo_head {shape.name}", partial(speed.training, log, shape, rows, device, **options)
        if not smoke:
            yield "rewards, 16 M rows", partial(speed.rewards, log, 1 << 24, 8192, device, rounds=rounds)
        megabytes = 1 if smoke else 1024
        yield "workspace", partial(speed.workspace, log, shapes[-1], (rows, many), megabytes, device)
        yield "preference_head", partial(speed.preference, log, shapes[0], rows, device, rounds=rounds)
        yield "rto_score", partial(speed.three_models, log, shapes[0], rows, device, rounds=rounds)
        options = dict(rounds=rounds, all_rivals=False, compiled=False)
        for shape in shapes:
            yield f"scoring {shape.name}, T={many}", partial(speed.forward, log, shape, many, device, **options)
            yield f"ppo_head {shape.name}, T={many}", partial(speed.training, log, shape, many, device, **options)
    if "parity" in parts and not smoke:
        for shape in (LLAMA, QWEN, PYTHIA):
            yield f"parity {shape.name}, T={many}", partial(parity.heads, log, shape, many, device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and RESULTS.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--budget-s", type=float, default=450.0, help="begin no section after this many seconds")
    parser.add_argument(
        "--smoke", action="store_true", help="the same code at tiny shapes, on a CPU too; its times mean nothing"
    )
    given = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.smoke:
        print("bench.gpu: there is no GPU here; --smoke tries the code at tiny shapes on the CPU", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    log = Log(given.out, given.budget_s, machine.describe() | {"device": machine_name(device)}, given.smoke)
    for name, why in peers.available(device)[1].items():
        log.note(f"{name}: not measured, {why}")
    for name, run in sections(log, device, given.only, given.smoke):
        log.section(name, run)
    targets.judge(log)
    log.write()
    failed = log.failed
    print(f"{len(log.results['checks'])} checks, {len(failed)} failed; {log.folder / 'RESULTS.md'}")
    return 1 if failed else 0


def machine_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
