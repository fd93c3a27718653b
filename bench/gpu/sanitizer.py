"""NVIDIA's compute-sanitizer on each of our kernels: memory, races, barriers, reads of memory nothing wrote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu.log import Log

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
KERNELS = ("fold_kernel", "d_logits_kernel", "ppo_kernel", "pairs_kernel", "_token_reward_gae")
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")


def run(log: Log, timeout_s: float) -> None:
    """One check for each tool; a sanitizer that is not there, or refuses the device, is a note and not a pass."""
    sanitizer = shutil.which("compute-sanitizer") or next((p for p in PLACES if Path(p).is_file()), None)
    if sanitizer is None:
        log.note("compute-sanitizer: not installed, nothing was checked")
        return
    # without torch's cache every tensor is an allocation of its own, whose ends the tool knows
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    ours = [word for name in KERNELS for word in ("--kernel-name", f"kernel_substring={name}")]
    for tool in TOOLS:
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *ours, sys.executable, "-m", "bench.gpu.small"]
        try:
            done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            log.note(f"compute-sanitizer {tool}: not finished after {timeout_s:.0f} s")
            continue
        text = (done.stdout + done.stderr).strip()
        if "all kernels ran" not in text and done.returncode != 9:
            log.note(f"compute-sanitizer {tool}: could not run: {_last(text)}")
            continue
        log.check(f"compute-sanitizer {tool}", done.returncode == 0, _last(text))


def _last(text: str) -> str:
    """The tool's verdict, or the last words of whatever else was printed."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    summary = [line for line in lines if "SUMMARY" in line or "not supported" in line]
    return (summary or lines or ["no output"])[-1][:200]
