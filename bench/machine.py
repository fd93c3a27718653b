"""What a figure was measured on."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "trl", "transformers")


def command(*words: str) -> str | None:
    """The first line a program prints, None where there is no such program or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's model, as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe() -> dict[str, object]:
    """Machine, versions and commit."""
    facts: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": command("git", "rev-parse", "--short", "HEAD"),
        "uncommitted changes": bool(command("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit"
        facts |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "cuda": torch.version.cuda,
            "driver, SM clock, highest SM clock, power limit": command("nvidia-smi", query, "--format=csv,noheader"),
        }
    return facts
