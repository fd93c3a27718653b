"""The reward server before clients that send slowly, too much, or nonsense: it refuses them and serves the others."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.attack.command import Ended, Outcome, environment, python
from tests.fuzz.place import base

HONEST = json.dumps({"query": ["what is the colour of a cat it is grey ."] * 3}).encode()
HEAD = b"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
ENDLESS = b"POST /get_reward HTTP/1.1\r\nHost: x\r\nX-Endless: "
MOST = 16 << 20
DEADLINE_S = 30.0
"""The server's, for a whole request."""
SECONDS, MEBIBYTES = 15.0, 2000.0
"""Of the server, for each attack."""

BODIES = {
    "16 MiB of open lists": (b"[" * MOST, 400),
    "16 MiB of open objects": (b'{"a":' * (MOST // 5), 400),
    "100,000 lists in one another": (b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "5,000,000 empty lists": (b'{"query": [' + b"[]," * 5_000_000 + b"[]]}", 400),
    "1,000,000 keys": (b'{"query": ["it"]' + b"".join(b',"%d":0' % i for i in range(1_000_000)) + b"}", 200),
    "1,000,000 times one key": (b'{"query": ["it"]' + b',"k":0' * 1_000_000 + b"}", 400),
    "5,000 queries": (json.dumps({"query": ["it"] * 5_000}).encode(), 413),
    "a number of 16 MiB": (b'{"query": ' + b"9" * (MOST - 20) + b"}", 400),
    "half a surrogate pair": (b'{"query": ["\\ud800"]}', 400),
}


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    words = [*base(shared, own / "run"), "--stages", "sft", "rm", "--eval.prompts", "0"]
    made = python("rto_fast.train", *words, where=own)
    yield Outcome("a reward model to serve", made, {"status 0": made.status == 0})
    with _server(own, "interrupted") as (child, log, port):
        yield from _hostile(child, log, port)
        yield _ended(child, log, port, signal.SIGINT, (0,), "stopped")
    with _server(own, "terminated") as (child, log, port):
        yield _ended(child, log, port, signal.SIGTERM, (0, -signal.SIGTERM), "")
    with _server(own, "asked at length") as (child, log, port):
        yield _long(child, log, port)


def _hostile(child: subprocess.Popen, log: Path, port: int) -> Iterator[Outcome]:
    with _dripping(port, 70, HEAD % 1000 + b"{") as bodies, _dripping(port, 10, ENDLESS) as heads:
        began, before = time.monotonic(), _taken(child)[0]
        answered = [_ask(port, HONEST)[0] for _ in range(25)]
        meanwhile = not bodies and not heads
        late = began + 2 * DEADLINE_S
        while len(bodies) + len(heads) < 80 and time.monotonic() < late:
            time.sleep(0.2)
        wanted = {
            "25 of 25 honest requests are answered": answered == [200] * 25,
            "while all of the others drip": meanwhile,
            "all bodies are told 408": [b" 408 " in said for _, said in bodies] == [True] * 70,
            "all heads are cut off": len(heads) == 10,
            "at the deadline": all(DEADLINE_S - 2 < after < 1.5 * DEADLINE_S for after, _ in (*bodies, *heads)),
        }
        yield _outcome("70 bodies and 10 heads drip", child, log, port, before, wanted)
    with contextlib.ExitStack() as held:
        before = _taken(child)[0]
        for _ in range(300):  # more than there are places
            held.enter_context(socket.create_connection(("127.0.0.1", port), 20)).sendall(HEAD % 1000)
        answered = [_ask(port, HONEST)[0] for _ in range(25)]
        yield _outcome("300 hold a place", child, log, port, before, {"25 of 25 are answered": answered == [200] * 25})
    for size in (MOST + 1, 20 << 20, 200 << 20):
        before = _taken(child)[0]
        status, said = _ask(port, b" " * size)
        wanted = {"status 413": status == 413, "says why": "a request may hold 16777216 bytes" in said}
        yield _outcome(f"a body of {size:,} bytes", child, log, port, before, wanted)
    for name, (body, wanted_status) in BODIES.items():
        before = _taken(child)[0]
        status, said = _ask(port, body)
        wanted = {
            f"status {wanted_status}, not {status} ({said[:100]})": status == wanted_status,
            "one sentence": status == 200 or (len(said) < 300 and '{"error": "' in said),
        }
        yield _outcome(name, child, log, port, before, wanted)


def _long(child: subprocess.Popen, log: Path, port: int) -> Outcome:
    """A text as long as a request may be, beside which an honest client asks."""
    before = _taken(child)[0]
    status, said = _ask(port, json.dumps({"query": ["it " * (5 << 20)]}).encode())
    wanted = {f"status 413, not {status}": status == 413, "says why": "a query may hold 1048576 characters" in said}
    return _outcome("a text of 15 MiB", child, log, port, before, wanted)


def _ended(
    child: subprocess.Popen, log: Path, port: int, number: signal.Signals, ends: tuple[int, ...], says: str
) -> Outcome:
    with _dripping(port, 70, HEAD % 1000 + b"{") as cut:
        time.sleep(1)
        alive, (seconds, most), began = child.poll() is None, _taken(child), time.monotonic()
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(90)
        took, waited = time.monotonic() - began, any(b" 408 " in said for _, said in cut)
    seen = Ended(child.poll(), log.read_text(errors="replace"), seconds, took, most)
    wanted = {
        "it lived until then": alive,
        f"it ends with {' or '.join(map(str, ends))}": seen.status in ends,
        "before the bodies' deadline": not waited,
        f"says {says!r}": says in seen.last,
        "no traceback": "Traceback" not in seen.text,
    }
    return Outcome(f"{number.name} while 70 bodies drip", seen, wanted)


@contextlib.contextmanager
def _server(own: Path, name: str) -> Iterator[tuple[subprocess.Popen, Path, int]]:
    log = own / f"{name}.log"
    words = ["--model", str(own / "run" / "rm"), "--port", "0", "--device", "cpu"]
    with open(log, "w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "rto_fast.judges.serve", *words], cwd=own, env=environment(), stdout=file,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=_interruptible,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"serving .* at http://127\.0\.0\.1:(\d+)/", log.read_text())):
            assert child.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield child, log, int(found[1])
    finally:
        child.kill()
        child.wait()


def _interruptible() -> None:
    """What is started in the background has SIGINT ignored, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _outcome(
    name: str, child: subprocess.Popen, log: Path, port: int, before: float, wanted: dict[str, bool]
) -> Outcome:
    """With what must hold after each attack, of a server that goes on; `before`: what it had taken of the processor."""
    seconds, most = _taken(child)
    status = _ask(port, HONEST)[0]
    seen = Ended(child.poll(), log.read_text(errors="replace"), seconds - before, 0.0, most)
    always = {
        "the server lives, and an honest client is answered": child.poll() is None and status == 200,
        "no traceback": "Traceback" not in seen.text,
        f"at most {SECONDS:g} s": seen.seconds < SECONDS,
        f"at most {MEBIBYTES:g} MiB": most < MEBIBYTES,
    }
    return Outcome(name, seen, wanted | always)


def _taken(child: subprocess.Popen) -> tuple[float, float]:
    """Seconds of the processor and the most MiB of a running process, since its start."""
    with contextlib.suppress(OSError, IndexError):  # it has ended
        folder = Path("/proc") / str(child.pid)
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        most = re.findall(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
        return (int(fields[11]) + int(fields[12])) / 100, int(most[0]) / 2**10
    return 0.0, 0.0


def _ask(port: int, body: bytes) -> tuple[int, str]:
    """By a client that sends all of its request before it reads; status 0 where it is not answered."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/get_reward", body, timeout=240) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


@contextlib.contextmanager
def _dripping(port: int, count: int, first: bytes) -> Iterator[list[tuple[float, bytes]]]:
    """Clients that send a byte now and then, and when each was cut off, with what it was told."""
    over, cut = threading.Event(), []

    def drip() -> None:
        with socket.create_connection(("127.0.0.1", port), 20) as connection, contextlib.suppress(ConnectionError):
            began, said = time.monotonic(), b""
            connection.sendall(first)
            connection.settimeout(0.25)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    if not (got := connection.recv(1000)):
                        break
                    said += got
                if not said:
                    connection.send(b" ")
        if not over.is_set():
            cut.append((time.monotonic() - began, said))

    threads = [threading.Thread(target=drip) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield cut
    finally:
        over.set()
        for thread in threads:
            thread.join()
