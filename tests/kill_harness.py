"""Kills a run at random moments and lets it go on.

    python -m tests.kill_harness FOLDER TRIALS [SEED] [quickstart] [adapters]

Each trial starts anew, is killed (SIGKILL) at a random moment of the undisturbed run's time, goes on with the same
command and must end with the same bits: models, metrics and results, wall-clock columns aside. Children are forked from
one parent that has imported everything, so that a trial takes seconds. With "quickstart" model and data are the
quickstart's, with fewer steps of each stage, saved every five; with "adapters" dpo and rto train adapters of rank 4.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from rto_fast.pipeline import run as pipeline  # noqa: F401  (imported once, before the forks)
from rto_fast.train import main
from rto_fast.training.metrics import WALL_CLOCK
from tests.tiny_run import SETTINGS, write_model, write_pairs


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--data.path": "pairs.jsonl", "--output": output}
    words = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    return [*words, "--device", "cpu", "--checkpoint.every", "1", *more]


def quickstart(folder: Path, output: str) -> list[str]:
    """The quickstart's model and data, and a few steps of each stage."""
    steps = ["--sft.epochs", "0.06", "--dpo.epochs", "0.16", "--rto.iterations", "3", "--rto.rollouts", "64"]
    rest = ["--rto.minibatch", "16", "--eval.prompts", "16", "--sweep.ratios", "--sweep.clips"]
    return [*steps, *rest, "--output", str(folder / output), "--device", "cpu", "--checkpoint.every", "5"]


def setting(folder: Path) -> None:
    """What a run reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(SETTINGS)


def start(words: list[str]) -> int:
    """Run the command in a child; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # tqdm's own lock is shared between processes: who is killed holding it would stop all who come after
    tqdm.set_lock(threading.RLock())
    os._exit(main(words))


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_state(run: Path) -> dict[str, str]:
    """A digest of everything that a finished run must have."""
    files = [file for stage in ("sft", "dpo", "rto") for file in sorted((run / stage).glob("*.safetensors"))]
    state = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(state) == 3, files
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    for entry in (*lines, results):
        for name in [name for name in entry if name.startswith(WALL_CLOCK)]:
            entry.pop(name)
    leftovers = [path.name for path in (*run.glob("*.checkpoints"), *run.rglob("*.partial"))]
    return state | {"metrics": json.dumps(lines), "results": json.dumps(results), "leftovers": str(leftovers)}


def harness(folder: Path, trials: int, seed: int, words: Callable[[Path, str], list[str]] = arguments) -> int:
    """Number of trials whose end state differs."""
    torch.set_num_threads(1)
    setting(folder)
    shutil.rmtree(folder / "whole", ignore_errors=True)
    began = time.monotonic()
    assert status(start(words(folder, "whole"))) == 0, "the undisturbed run failed"
    took, wanted = time.monotonic() - began, end_state(folder / "whole")
    rng, wrong, landed = random.Random(seed), 0, 0
    for trial in range(trials):
        run = folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        child = start(words(folder, "killed"))
        time.sleep(rng.uniform(0.02, took))
        os.kill(child, signal.SIGKILL)
        killed = status(child) == -signal.SIGKILL
        landed += killed
        found = sorted(p.name for p in run.glob("*")) if run.exists() else []
        code = status(start(words(folder, "killed")))
        same = code == 0 and end_state(run) == wanted
        wrong += not same
        print(f"trial {trial + 1}: {'killed' if killed else 'too late'} with {found}; {'same' if same else 'DIFFERS'}")
    print(f"{trials} trials, {landed} kills, {trials - wrong} end states equal bit for bit")
    return wrong


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdigit()]
    command = quickstart if "quickstart" in sys.argv else arguments
    more = ["--adapter.rank", "4", "--adapter.full-sft", "True"] if "adapters" in sys.argv else []
    made = harness(
        Path(sys.argv[1]),
        numbers[0],
        numbers[1] if len(numbers) > 1 else 0,
        lambda folder, output: [*command(folder, output), *more],
    )
    sys.exit(made > 0)
