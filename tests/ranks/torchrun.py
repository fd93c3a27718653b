"""Runs under torchrun, with one thread each, and how their ends are compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from rto_fast.training.metrics import WALL_CLOCK

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def words(folder: Path, output: str, *more: str) -> list[str]:
    """The command of a tiny run (`kill_harness.setting`)."""
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--data.path": "pairs.jsonl", "--output": output}
    return [*(word for flag, name in paths.items() for word in (flag, str(folder / name))), "--device", "cpu", *more]


def begin(ranks: int, *commands: list[str]) -> subprocess.Popen:
    """So many processes, which do one command after the other."""
    launch = [*LAUNCH, str(ranks), str(Path(__file__).with_name("driver.py")), json.dumps(commands)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(launch, cwd=ROOT, env=ENVIRONMENT, **pipes)


def train(ranks: int, *commands: list[str]) -> str:
    """What they printed, all of it having gone well."""
    process = begin(ranks, *commands)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


def steps(run: Path, stage: str) -> list[dict[str, float]]:
    """A stage's logged steps without what a clock has measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_stage = [line for line in lines if line["stage"] == stage]
    return [{name: x for name, x in line.items() if not name.startswith((*WALL_CLOCK, "stage"))} for line in of_stage]


def distance(a: Path, b: Path) -> float:
    """The largest difference of two exports' numbers, of the largest number."""
    (x,), (y,) = ([load_file(file) for file in sorted(folder.glob("*.safetensors"))] for folder in (a, b))
    assert x.keys() == y.keys() and len(x) > 0
    gap = max(float((x[k].double() - y[k].double()).abs().max()) for k in x)
    return gap / max(float(x[k].abs().max()) for k in x)


def same_bits(a: Path, b: Path) -> bool:
    (x,), (y,) = ([load_file(file) for file in sorted(folder.glob("*.safetensors"))] for folder in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
