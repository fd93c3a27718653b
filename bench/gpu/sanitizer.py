"""NVIDIA's compute-sanitizer on each of our kernels: memory, races, barriers, reads of memory nothing wrote.

Its tools take their time on the host, so that all four run in processes of their own beside the parity checks, and are
waited for before anything is timed.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.gpu import small
from bench.gpu.log import Log

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")
FOUND_SOMETHING = 9


class Watch(NamedTuple):
    """A tool at work."""

    tool: str
    process: subprocess.Popen
    output: Path


def start(log: Log, watches: list[Watch]) -> None:
    """Start the tools; a sanitizer that is not there is a note and not a pass."""
    for op in sorted(small.unwatched()):
        log.note(f"compute-sanitizer: bench/gpu/small.py does not run the kernels of {op}, which are not checked")
    sanitizer = shutil.which("compute-sanitizer") or next((p for p in PLACES if Path(p).is_file()), None)
    if sanitizer is None:
        log.note("compute-sanitizer: not installed, nothing was checked")
        return
    # the tools then find the kernels compiled
    small.main()
    # without torch's cache every tensor is an allocation of its own, whose ends the tool knows
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    program = ["--target-processes", "application-only", sys.executable, "-m", "bench.gpu.small"]
    for tool in TOOLS:
        output = log.folder / f"sanitizer_{tool}.log"
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_SOMETHING), *program]
        with output.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
            )
        watches.append(Watch(tool, process, output))


def collect(log: Log, watches: list[Watch], timeout_s: float) -> None:
    """One check for each tool that ran; one that ran out of time, or refuses the device, is a note and not a pass."""
    end = log.elapsed_s + timeout_s
    for tool, process, output in watches:
        try:
            code = process.wait(max(1.0, end - log.elapsed_s))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.note(f"compute-sanitizer {tool}: not finished in time: {_last(output.read_text(errors='replace'))}")
            continue
        judge(log, tool, code, output.read_text(errors="replace"))


def judge(log: Log, tool: str, code: int, text: str) -> None:
    """A check where the tool watched our kernels, a note where it could not."""
    watched = "all kernels ran" in text
    if not watched and (code != FOUND_SOMETHING or "not supported" in text):
        log.note(f"compute-sanitizer {tool}: could not run: {_last(text)}")
        return
    log.check(f"compute-sanitizer {tool}", watched and code == 0, _last(text))


def _last(text: str) -> str:
    """The tool's verdict, or the last words of whatever else was printed."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    summary = [line for line in lines if "SUMMARY" in line or "not supported" in line]
    return (summary or lines or ["no output"])[-1][:200]
