"""How much the rows of one file may take: a file that is packed, or names one value a million times, hides it."""

import os
from pathlib import Path
from typing import Any

FREE_BYTES = 64 * 2**20
"""That much every file may become."""
MAX_GROWTH = 200
"""What a larger one may become, in multiples of its size on the disk; real text packs to a tenth."""
OBJECT_BYTES = 200
"""A row, or an object in one, takes at least this, however short its text."""
VALUE_BYTES = 16
"""A value in a list takes at least this, also where it is none."""
BATCH_BYTES = 512 * 2**20
"""What a batch of rows of a column that is stored once and named in each of them may take."""


class Overgrown(ValueError):
    """A file that unpacks to more than it may."""


class Allowance:
    """Counts down while a file is read. A plain text file cannot use it up: its rows are its size."""

    def __init__(self, path: Path):
        self.path = path
        self.left = max(FREE_BYTES, MAX_GROWTH * os.path.getsize(path))

    def take(self, size: int, objects: int = 1) -> None:
        """`objects` more, of `size` bytes together. Overgrown when that is more than what is left."""
        self.left -= max(size, OBJECT_BYTES * objects)
        if self.left < 0:
            raise Overgrown(
                f"{self.path}: unpacked it is more than {MAX_GROWTH} times its size, and more than "
                f"{FREE_BYTES // 2**20} MiB; if these rows are meant, give them as a .jsonl that is not packed"
            )

    def take_json(self, text: bytes) -> None:
        """A text of JSON, with every object and list in it."""
        self.take(len(text), 1 + text.count(b"{") + text.count(b"["))

    def take_value(self, value: Any) -> None:
        """A row as it is in memory. Its size in a column store says nothing: equal values are stored once."""
        self.take(_size(value))


def _size(value: Any) -> int:
    if isinstance(value, dict | list):
        return OBJECT_BYTES + sum(map(_size, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str | bytes) else 8
