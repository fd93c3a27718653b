"""A process that judges one item at a time and is ended when it takes too long.

It lasts, unlike the forks of data/isolate.py: it imports its library once for all answers, holds nothing of the
trainer's (no torch, none of its memory, none of its threads' locks), and may be asked from any thread.
"""

import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

SCRIPT = Path(__file__).with_name("verdicts.py")
START_LIMIT_S = 120.0


class TooLong(Exception):
    """No verdict within the limit, or the process ended over the item."""


class Child:
    """verdicts.py with the given arguments, started when it is first asked, and again after it had to be ended.

    It lives in a session of its own (an interrupt at the terminal is the trainer's to handle) and ends with its
    standard input, so at the latest with this process. `ask` may be called from any thread.
    """

    def __init__(self, kind: str, *options: str, limit_s: float):
        self._arguments = [kind, str(limit_s), *options]
        self._limit_s = limit_s
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def ask(self, item: dict) -> bool | None:
        """The verdict. Raises TooLong, after which the next call starts a new process."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._close()  # something ended it between two items
            if self._process is None:
                self._start()
            try:
                self._process.stdin.write(json.dumps(item).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                line = b""
            else:
                line = self._line(self._limit_s)
            if not line.endswith(b"\n"):
                self._close()
                raise TooLong
            return json.loads(line)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _start(self) -> None:
        # the same libraries as here, from wherever they were put on the path
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        # called at the latest at the interpreter's end, before the modules go that it needs
        self._finish = weakref.finalize(self, _end, self._process)
        said = json.loads(self._line(START_LIMIT_S) or b'{"error": "it ended at once"}')
        if "error" in said:
            self._close()
            raise ValueError(f"rto.score.rule: the process that judges answers did not start: {said['error']}")

    def _line(self, limit_s: float) -> bytes:
        """The next line; empty or unended when the process ended, by itself or for taking longer than `limit_s`."""
        process = self._process
        killed = threading.Event()

        def end() -> None:
            killed.set()
            process.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        timer.join()
        return b"" if killed.is_set() else line

    def _close(self) -> None:
        if self._process is not None:
            self._process = None
            self._finish()


def _end(process: subprocess.Popen) -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    process.wait()
