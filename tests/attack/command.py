"""A command as a user gives it, with what it printed, how it ended, and what it took."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Ended:
    status: int | None
    """None: it did not end within its limit, and was killed. -9: it was killed at the moment that was asked for."""
    text: str
    """stdout and stderr as they came, progress bars' overwritten lines left out."""
    seconds: float
    """Of the processor, in all its processes."""
    wall: float
    mebibytes: float
    """The most that all its processes held at once."""

    @property
    def last(self) -> str:
        return next((line for line in reversed(self.text.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class Outcome:
    """Of one attack: what was seen, and what should have been."""

    name: str
    seen: Ended
    wanted: dict[str, bool]
    """Whether each thing that must hold does."""

    @property
    def holds(self) -> bool:
        return all(self.wanted.values())


def environment(**more: str) -> dict[str, str]:
    """A user's, with the project found from any folder, no network asked for, and one thread, for a busy machine."""
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def refused(seen: Ended, *says: str) -> dict[str, bool]:
    """What must hold where a command must not do its work: it says why in one last line, which holds each of `says`."""
    one = seen.last.startswith("rto_fast: error: ") and seen.text.count("rto_fast: error: ") == 1
    return {"status 2": seen.status == 2, "the error is one last line": one} | _told(seen, says, seen.last)


def done(seen: Ended, *says: str) -> dict[str, bool]:
    """What must hold where a command must do its work."""
    return {"status 0": seen.status == 0} | _told(seen, says, seen.text)


def _told(seen: Ended, says: tuple[str, ...], where: str) -> dict[str, bool]:
    return {f"says {part!r}": part in where for part in says} | {"no traceback": "Traceback" not in seen.text}


def copied(shared: Path, run: Path) -> Path:
    """The finished run in a folder of its own, in place of what is there."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(shared / "run", run)
    settings = run / "config.toml"
    settings.write_text(settings.read_text().replace(str(shared / "run"), str(run)))
    return run


def flip(file: Path) -> None:
    """One bit, in the middle; size and dates stay."""
    about, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def never() -> bool:
    return False


def python(
    *words: str | Path, where: Path, limit: float = 300.0, until: Callable[[], bool] = never, **variables: str
) -> Ended:
    """`python -m WORDS` in the folder `where`, killed as soon as `until` holds."""
    return command([sys.executable, "-m", *map(str, words)], where, limit, until, **variables)


def shell(line: str, where: Path, limit: float = 300.0, **variables: str) -> Ended:
    """A line of bash in which `python` is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return command(["bash", "-c", line], where, limit, PATH=path, **variables)


def command(words: list[str], where: Path, limit: float, until: Callable[[], bool] = never, **variables: str) -> Ended:
    child = subprocess.Popen(
        words, cwd=where, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    most, ended = [0.0], threading.Event()
    watch = threading.Thread(target=_watch, args=(child.pid, most, until, ended))
    began, before = time.monotonic(), os.times()
    watch.start()
    try:
        text, status = child.communicate(timeout=limit)[0], child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        text, status = child.communicate()[0], None
    ended.set()
    watch.join()
    after, wall = os.times(), time.monotonic() - began
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Ended(status, _plain(text.decode(errors="replace")), seconds, wall, most[0])


def _plain(text: str) -> str:
    lines = (line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))
    return "\n".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines)


def _watch(session: int, most: list[float], until: Callable[[], bool], ended: threading.Event) -> None:
    while not ended.wait(0.1):
        most[0] = max(most[0], sum(_resident(session)))
        if until():
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(session, signal.SIGKILL)
            return


def _resident(session: int) -> Iterator[float]:
    """MiB of every process of a session, as the system shows them now."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield int((folder / "statm").read_text().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
