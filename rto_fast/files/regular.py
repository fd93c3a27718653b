"""Files of others: regular ones alone, and never more of one than was asked for.

A pipe never ends and a device has no end; a name says nothing about which of them lies behind it.
"""

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Irregular(OSError):
    """A name that leads to no regular file."""


def irregular(path: str | Path | int) -> str | None:
    """What a name, or an open file's number, leads to where that is no regular file: "a pipe", "a folder"; links are
    followed. None for a regular file, and where nothing is."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a NUL
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file for reading, in bytes. OSError for what is none, without waiting for a pipe's other end."""
    at_once = getattr(os, "O_NONBLOCK", 0)  # not on Windows
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once))
    if found := irregular(file.fileno()):
        file.close()
        raise Irregular(errno.EINVAL, f"it is {found}, not a regular file", str(path))
    return file


def read_regular(path: str | Path, limit: int) -> bytes:
    """All bytes of a regular file. OSError as in `open_regular`, and where it holds more than `limit` bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"
        raise OSError(errno.EFBIG, f"it is larger than {size}", str(path))
    return content
