"""What the machine has free: memory of a device, room on a disk."""

import os
import shutil
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int:
    """Bytes that the device has free, or the machine for a CPU (within its control group's limit)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, StopIteration, ValueError):  # not Linux, or no such control group
        return free


def free_disk(folder: Path) -> int:
    """Bytes free where the folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
