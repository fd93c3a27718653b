"""Output that nobody reads (any more): what is written there is discarded, and work goes on."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Unread:
    """A stream whose reader (head, a terminal) may go away; from then on it leads nowhere. All else is the stream's."""

    def __init__(self, stream: "TextIO | Unread"):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_nowhere():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the latter of a terminal that was closed
                raise
            discard(self._stream)


def discard(stream: TextIO | Unread) -> None:
    """Lead a stream nowhere, with what it still holds and with what other languages and children write there."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def unread(stdout: bool = True) -> Iterator[None]:
    """stderr, and stdout where asked for, may lose their readers inside; who was started without either has both."""
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Unread(sys.stdout) if stdout else sys.stdout, Unread(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            Unread(stream).flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """A stream that was closed (>&-) is None, and the next file that is opened gets its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
