"""Where a run's numbers go: metrics.jsonl, TensorBoard events and the progress bar."""

import contextlib
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rto_fast.files.disk import appending, no_links, remove, write_whole, writing
from rto_fast.files.regular import open_regular
from rto_fast.training.progress import progress

SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "reward/per_answer": "reward",
    "kl/per_answer": "kl",
    "answers/length": "len",
    "tokens_per_second": "tok/s",
}
"""The few numbers beside the progress bar, and their short names."""

WARNINGS = {
    "guard/grad_norm": "a gradient norm of {:.3g} is above guards.grad_norm",
    "guard/kl": "a KL to pi_ref of {:.3g} nats per answer is above guards.kl",
}
"""Metrics that are a line of their own on the terminal."""

WALL_CLOCK = ("seconds", "tokens_per_second", "time/", "memory/")
"""Beginnings of the names of what differs between two runs of the same bits."""


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that this process has held so far: the GPU's on CUDA, else the machine's. MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _forget(folder: Path, stage: str, after: int) -> None:
    """Drop what an interrupted attempt at the same stage has logged beyond the step that it goes on from."""
    if after == 0:
        no_links(folder / "tb")
        remove(folder / "tb" / stage)
    file = folder / "metrics.jsonl"
    if file.is_file():
        kept = (x.decode() + "\n" for x in file.read_bytes().split(b"\n") if _keep(x, stage, after))
        write_whole(file, "".join(kept))


def take_stage(folder: Path, other: Path, stage: str) -> None:
    """Take another run's lines and events of a stage in the place of this run's, if there are any."""
    _forget(folder, stage, 0)
    own, lines = folder / "metrics.jsonl", []
    with contextlib.suppress(FileNotFoundError), open_regular(other / "metrics.jsonl") as file:
        lines = [line.decode() for line in file if _keep(line, stage, math.inf) and not _keep(line, stage, -math.inf)]
    before = own.read_text(encoding="utf-8") if own.is_file() else ""
    write_whole(own, before + "".join(lines))
    if (other / "tb" / stage).is_dir():
        shutil.copytree(other / "tb" / stage, folder / "tb" / stage)


def _keep(line: bytes, stage: str, after: float) -> bool:
    """Whether a line is one of ours, and not from beyond the step that the stage goes on from."""
    try:
        entry = json.loads(line.decode())
        step = entry["step"]
        return entry["stage"] != stage or step <= after
    except (ValueError, TypeError, KeyError, RecursionError):  # cut short when the run was killed, or damaged since
        return False


def _quiet(original: Callable[[threading.ExceptHookArgs], object], failed: threading.ExceptHookArgs) -> None:
    """What TensorBoard's own thread could not write is raised at the next line; it needs no traceback of its own."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard")):
        original(failed)


class NoLog(contextlib.AbstractContextManager["NoLog"]):
    """A log of nothing, for the ranks beside the first."""

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Every rank measures the same."""

    def note(self, text: str) -> None:
        """Nor is what it does shown."""

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class StageLog(contextlib.AbstractContextManager["StageLog"]):
    """A stage's log, called as log(step, metrics).

    metrics.jsonl gets one line per call: {"stage", "step", "seconds", ...metrics}; events of the same names go to tb/.
    """

    def __init__(self, folder: Path, stage: str, num_steps: int, done: int = 0):
        """`done` steps were made, and logged, before."""
        from torch.utils.tensorboard import SummaryWriter

        _forget(folder, stage, done)
        self.folder, self.stage, self.started = folder, stage, time.perf_counter()
        self.hook = threading.excepthook
        threading.excepthook = partial(_quiet, self.hook)
        with writing(f"metrics: {folder / 'metrics.jsonl'}"):
            self.file = appending(folder / "metrics.jsonl")
        with writing(f"metrics: {folder / 'tb' / stage}"):
            self.events = SummaryWriter(folder / "tb" / stage, purge_step=done + 1)
        self.bar = progress(num_steps, "step", initial=done, desc=f"{stage:4}", leave=True, delay=0)
        self.shown: dict[str, str] = {}

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        seconds = round(time.perf_counter() - self.started, 3)
        with writing(f"metrics: {self.folder / 'metrics.jsonl'}"):
            self.file.write(json.dumps({"stage": self.stage, "step": step, "seconds": seconds, **metrics}) + "\n")
            self.file.flush()
        with writing(f"metrics: {self.folder / 'tb' / self.stage}"):
            for name, value in metrics.items():
                self.events.add_scalar(f"{self.stage}/{name}", value, step)
        for name, text in WARNINGS.items():
            if name in metrics:
                self.bar.write(f"{self.stage} step {step}: {text.format(metrics[name])}", file=sys.stderr)
        self.shown |= {short: f"{metrics[name]:.4g}" for name, short in SHOWN.items() if name in metrics}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(step - self.bar.n)

    def note(self, text: str) -> None:
        """Say what goes on between two steps."""
        self.bar.set_postfix({**self.shown, "now": text}, refresh=False)
        self.bar.update(0)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.bar.close()
        try:
            for file in (self.events, self.file):
                with writing(f"metrics: {self.folder}"):
                    file.close()
        except OSError:
            if kind is None:  # else it would hide what ended the stage
                raise
        finally:
            threading.excepthook = self.hook
