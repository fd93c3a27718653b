"""Refuses a small run its disk at every write in turn: python -m tests.disk_harness FOLDER [EVERY] [BYTES ...].

As root, python -m tests.disk_harness FOLDER tmpfs [STEP] does it with real, small disks instead: of STEP KiB (default
64), twice as many, and so on, until the run fits.

Each trial starts anew. Where the run opens its N-th file for writing, makes a folder, renames one or logs a line, no
file of its process may grow beyond BYTES any more (RLIMIT_FSIZE; 0: nothing can be written, 3000: a file is cut). The
run must end with status 2 and one line; every checkpoint that stands must load; and the same command, given its disk
back, must end with the bits of an undisturbed run. EVERY: only each so many-th N.
"""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from rto_fast.config import CheckpointConfig
from rto_fast.train import main
from rto_fast.training import metrics
from rto_fast.training.checkpoint import Checkpoints
from tests.kill_harness import arguments, end_state, setting, status

LIMITS = (0, 3000)


def watch(run: Path, happens: Callable[[str], None]) -> None:
    """Call happens(what) before each change that this process makes below `run`."""
    inside = os.fspath(run)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(inside):
                happens(f"open {Path(path).name}")
        elif event in ("os.mkdir", "os.rename") and str(args[0]).startswith(inside):
            happens(f"{event} {Path(args[0]).name}")

    sys.addaudithook(hook)
    original = metrics.StageLog.__call__

    def log(self, step, numbers):
        happens(f"log {self.stage} {step}")
        original(self, step, numbers)

    metrics.StageLog.__call__ = log


def call(words: list[str], prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """(exit status, all that is said on stderr) of the command in a forked child, after prepare() in it."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            tqdm.set_lock(threading.RLock())
            prepare()
            code = main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return status(child), said


def events(folder: Path) -> list[str]:
    """What an undisturbed run changes, in order."""
    noted = folder / "events.txt"

    def prepare() -> None:
        file = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch(folder / "whole", lambda what: os.write(file, (what + "\n").encode()))

    code, said = call(arguments(folder, "whole"), prepare)
    assert code == 0, f"the undisturbed run failed: {said}"
    return noted.read_text().splitlines()


def refuse(folder: Path, at: int, limit: int) -> tuple[int, str]:
    """Run with the disk full from change `at` on: (exit status, what it said in the end)."""
    count = 0

    def happens(what: str) -> None:
        nonlocal count
        count += 1
        if count == at + 1:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        watch(folder / "refused", happens)

    return call(arguments(folder, "refused"), prepare)


def refused(folder: Path, at: int, limit: int, wanted: dict[str, str]) -> list[str]:
    """A trial with a limit: what it shows that it should not; nothing when all is well."""
    shutil.rmtree(folder / "refused", ignore_errors=True)
    code, said = refuse(folder, at, limit)
    found = wrong(folder / "refused", code, said)
    return found + afterwards(folder, folder / "refused", wanted)


def wrong(run: Path, code: int, said: str) -> list[str]:
    found = []
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("rto_fast: error: ")]
    if code == 2 and (len(lines) != 1 or len(lines[0]) > 1000):
        found.append(f"{len(lines)} lines of error")
    if code not in (0, 2):  # 0: what was refused is not needed, or was written at once
        found.append(f"exit status {code}")
    if "Traceback" in said:
        found.append("a traceback: " + said.strip().splitlines()[-1][:200])
    for stage in ("sft", "dpo", "rto"):
        checkpoints = Checkpoints(run / f"{stage}.checkpoints", CheckpointConfig())
        stand = [path for path in (run / f"{stage}.checkpoints").glob("step-*") if path.suffix != ".partial"]
        if stand and (checkpoints.newest() is None or checkpoints.damaged):
            found.append(f"{stage}: a checkpoint does not load: {checkpoints.damaged}")
    return found


def afterwards(folder: Path, run: Path, wanted: dict[str, str]) -> list[str]:
    """The same command, with its disk back."""
    again, said = call(arguments(folder, os.fspath(run.relative_to(folder))))
    if again != 0:
        return [f"exit status {again} with the disk back: {said[-300:]}"]
    differ = [name for name, value in end_state(run).items() if value != wanted[name]]
    return [f"other {', '.join(differ)} in the end"] if differ else []


def small_disks(folder: Path, step: int = 64) -> tuple[int, int]:
    """(trials, trials in which something was wrong) on disks of `step`, 2 `step`, ... KiB, until the run fits."""
    torch.set_num_threads(1)
    setting(folder)
    assert call(arguments(folder, "whole"))[0] == 0, "the undisturbed run failed"
    wanted, disk, bad, size, code = end_state(folder / "whole"), folder / "disk", 0, 0, 2
    disk.mkdir(exist_ok=True)
    while code:
        size += step
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
        try:
            code, said = call(arguments(folder, "disk/run"))
            found = wrong(disk / "run", code, said)
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            found += afterwards(folder, disk / "run", wanted)
        finally:
            subprocess.run(["umount", disk], check=True)
        bad += bool(found)
        print(f"{size} KiB: {'; '.join(found) or 'well'}; {said.strip().splitlines()[-1][:160]}", flush=True)
    print(f"{size // step} disks, {size // step - bad} met with one line and made good bit for bit")
    return size // step, bad


def harness(folder: Path, every: int = 1, limits: tuple[int, ...] = LIMITS, first: int = 0) -> tuple[int, int]:
    """(trials, trials in which something was wrong)."""
    torch.set_num_threads(1)
    setting(folder)
    changes = events(folder)
    wanted = end_state(folder / "whole")
    print(f"{len(changes)} changes, digest {hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:12]}")
    trials = [(at, limit) for at in range(first, len(changes), every) for limit in limits]
    bad = 0
    for at, limit in trials:
        found = refused(folder, at, limit, wanted)
        bad += bool(found)
        print(f"{at}: {changes[at]}, {limit} bytes: {'; '.join(found) or 'well'}", flush=True)
    print(f"{len(trials)} refusals, {len(trials) - bad} met with one line and made good bit for bit")
    return len(trials), bad


if __name__ == "__main__":
    if sys.argv[2:3] == ["tmpfs"]:
        sys.exit(small_disks(Path(sys.argv[1]), *map(int, sys.argv[3:4]))[1] > 0)
    numbers = [int(word) for word in sys.argv[2:]]
    sys.exit(harness(Path(sys.argv[1]), *numbers[:1], limits=tuple(numbers[1:]) or LIMITS)[1] > 0)
