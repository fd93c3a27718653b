"""Run folders as they lie on disk: whatever can be read is kept, whatever cannot is counted and said.

The files may come from anyone: lines may be broken, cut short, huge or of another shape.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rto_fast.evaluate.heatmap import is_number
from rto_fast.files.digests import MANIFEST, is_whole, stated
from rto_fast.files.regular import open_regular, read_regular
from rto_fast.runs.settings import SETTINGS, as_they_stand

MAX_LINE = 4 << 20
"""Bytes; a longer line of a .jsonl file is skipped."""
MAX_FILE = 64 << 20
"""Bytes; a longer .json file is not read."""
MAX_LINES = 1 << 30
"""Bytes; what follows them in a .jsonl file is not read."""
MAX_ANSWERS = 2000
"""Lines of answers.jsonl that are kept."""
PARTS = (SETTINGS, "metrics.jsonl", "results.json")


@dataclass(frozen=True)
class Run:
    """One run folder. What is missing is empty, and `faults` says why in a line each."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, list[dict[str, Any]]]
    """Lines of metrics.jsonl by stage, in the order of the file."""
    results: dict[str, Any]
    answers: list[dict[str, Any]]
    heatmaps: list[dict[str, Any]]
    faults: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        return str(self.config.get("recipe") or self.results.get("recipe") or self.folder.name)

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed", self.results.get("seed"))
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def number(value: Any) -> float | None:
    """A number that charts can place (`is_number`; below 1e-30 all is 0), or None for anything else."""
    if not is_number(value):
        return None
    return float(value) if abs(value) > 1e-30 else 0.0


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def setting(config: dict[str, Any], path: str) -> Any:
    """config["a"]["b"] for "a.b", or None."""
    value: Any = config
    for key in path.split("."):
        value = mapping(value).get(key)
    return value


def read_run(folder: Path) -> Run:
    """Read a run folder. ValueError when it is none; anything less than that becomes a line in `faults`."""
    if not folder.is_dir():
        raise ValueError(f"report: {folder} is {'a file' if folder.exists() else 'not there'}, wanted a run's folder")
    if not any((folder / name).is_file() for name in PARTS):
        raise ValueError(f"report: {folder} is no run of rto_fast: it holds none of {', '.join(PARTS)}")
    faults: list[str] = []
    damaged = _damaged(folder, faults)
    config = mapping(_whole(folder / SETTINGS, lambda file: as_they_stand(file.parent), faults))
    results = {} if "results.json" in damaged else mapping(_whole(folder / "results.json", _json, faults))
    metrics: dict[str, list[dict[str, Any]]] = {}
    for line in _lines(folder / "metrics.jsonl", faults):
        if isinstance(line.get("stage"), str) and number(line.get("step")) is not None:
            metrics.setdefault(line["stage"], []).append(line)
    said = () if "answers.jsonl" in damaged else _lines(folder / "answers.jsonl", faults)
    answers = [line for i, line in enumerate(said) if i < MAX_ANSWERS]  # all are read, for their faults
    maps = None if "heatmaps.json" in damaged else _whole(folder / "heatmaps.json", _json, faults)
    heatmaps = [m for m in maps if isinstance(m, dict)] if isinstance(maps, list) else []
    return Run(folder, config, metrics, results, answers, heatmaps, faults)


def expand(folders: Sequence[Path]) -> list[Path]:
    """The run folders meant: a comparison's folder stands for the runs inside it; each counts once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        folder = Path(folder).expanduser()
        inside: list[Path] = []
        if folder.is_dir() and not (folder / "metrics.jsonl").is_file():
            inside = sorted(p for p in folder.iterdir() if p.is_dir() and any((p / n).is_file() for n in PARTS[:2]))
        for run in inside or [folder]:
            found.setdefault(run.resolve(), run)
    if not found:
        raise ValueError("report: wanted at least one run folder, got none")
    return list(found.values())


def _damaged(folder: Path, faults: list[str]) -> list[str]:
    """Names of files that are there and are not what the run wrote."""
    try:
        digests = stated(folder)
    except ValueError:
        faults.append(f"{MANIFEST} is broken: damage to other files would not be seen")
        return []
    damaged = [name for name, digest in digests.items() if (folder / name).exists() and not _is(folder / name, digest)]
    faults += [
        f"{name} is not what the run wrote and was not read; the command that wrote it makes it again"
        for name in damaged
    ]
    return damaged


def _is(path: Path, digest: str) -> bool:
    """Whether a file is what was written; one that is longer than any that is read here is not asked."""
    return path.stat().st_size <= MAX_LINES and is_whole(path, digest)


def _json(path: Path) -> Any:
    return json.loads(read_regular(path, MAX_FILE).decode("utf-8-sig", errors="replace"))


@contextmanager
def _reading(path: Path, faults: list[str]) -> Iterator[None]:
    """What keeps a file from being read is a fault."""
    try:
        yield
    except FileNotFoundError:
        faults.append(f"{path.name} is missing")
    except OSError as error:
        faults.append(f"{path.name} was not read: {error.strerror}")
    except (ValueError, RecursionError):
        faults.append(f"{path.name} is broken and was not read")


def _whole(path: Path, read: Callable[[Path], Any], faults: list[str]) -> Any:
    with _reading(path, faults):
        return read(path)


def _lines(path: Path, faults: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file; lines that are none, and lines beyond MAX_LINE, are counted."""
    broken = long = 0
    with _reading(path, faults), open_regular(path) as file:
        inside = False  # of a long line
        while line := file.readline(MAX_LINE + 1):
            if file.tell() > MAX_LINES:
                faults.append(f"{path.name}: only its first {MAX_LINES >> 20} MiB were read")
                break
            begun, inside = inside, not line.endswith(b"\n")
            if begun or len(line) > MAX_LINE:
                long += not begun
            elif line.strip():
                value = None
                with suppress(ValueError, RecursionError):
                    value = json.loads(line.decode("utf-8", errors="replace"))
                if isinstance(value, dict):
                    yield value
                else:
                    broken += 1
    if broken:
        faults.append(f"{path.name}: {broken} broken line{'s were' if broken > 1 else ' was'} passed over")
    if long:
        faults.append(
            f"{path.name}: {long} line{'s' if long > 1 else ''} of more than {MAX_LINE >> 20} MiB passed over"
        )
