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
from typing import IO, Any

SCRIPT = Path(__file__).with_name("verdicts.py")
START_LIMIT_S = 120.0


class TooLong(Exception):
    """No verdict within the limit, or the process ended over the item."""


class Child:
    """verdicts.py with the given arguments, started when it is first asked, and again after it had to be ended.

    It lives in a session of its own (an interrupt at the terminal is the trainer's to handle) and ends with its
    standard input, so at the latest with this process.
    """

    def __init__(self, kind: str, *options: str, limit_s: float):
        self._arguments = [kind, str(limit_s), *options]
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    def ask(self, item: dict[str, Any]) -> bool | None:
        """The verdict. Raises TooLong, after which the next call starts a new process."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # something ended it between two items
            process = self._process or self._start()
            stdin, _ = _pipes(process)
            try:
                stdin.write(json.dumps(item).encode() + b"\n")
                stdin.flush()
            except BrokenPipeError:
                line = b""
            else:
                line = _line(process, self._limit_s)
            if not line.endswith(b"\n"):
                self.close()
                raise TooLong
            return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        # the same libraries as here, from wherever they were put on the path
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        # called at the latest at the interpreter's end, before the modules go that it needs
        self._finish = weakref.finalize(self, _end, process)
        said = json.loads(_line(process, START_LIMIT_S) or b'{"error": "it ended at once"}')
        if "error" in said:
            self.close()
            raise ValueError(f"rto.score.rule: the process that judges answers did not start: {said['error']}")
        return process

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process = None
                self._finish()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Its standard input and output."""
    assert process.stdin is not None and process.stdout is not None  # they were asked for
    return process.stdin, process.stdout


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next line; empty or unended when the process ended, by itself or for taking longer than `limit_s`."""
    _, stdout = _pipes(process)
    killed = threading.Event()

    def end() -> None:
        killed.set()
        process.kill()

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    line = stdout.readline()
    timer.cancel()
    timer.join()
    return b"" if killed.is_set() else line


def _end(process: subprocess.Popen[bytes]) -> None:
    stdin, stdout = _pipes(process)
    process.kill()
    with suppress(BrokenPipeError):
        stdin.close()
    stdout.close()
    process.wait()
