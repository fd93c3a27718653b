"""A command whose output is not read to its end, or was closed before: it does its work, and its status says so."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from rto_fast.files.digests import first_damaged
from tests.attack.command import Ended, Outcome, copied, done, python, shell
from tests.fuzz.place import base
from tests.kill_harness import end_state
from tests.tiny_run import write_pairs

READERS = {
    "both read for a line": "2>&1 | head -1",
    "both never read": "2>&1 | true",
    "stdout read for a line": "| head -1",
    "stderr never read": "2> >(true)",
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "both closed": ">&- 2>&-",
}
STATUSES = '; all=($? "${PIPESTATUS[@]}"); echo "statuses ${all[*]}"; exit ${all[0]}'
"""Of the line with pipefail, then of each command in it."""


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    yield from _trainings(shared, own)
    yield from _refusals(shared, own)
    yield from _workers(shared, own)
    yield from _viewers(shared, own)


def _line(words: list[str], reader: str, where: Path) -> Ended:
    return shell(f"set -o pipefail; {shlex.join(['python', '-m', *words])} {reader}{STATUSES}", where)


def _ended(seen: Ended, reader: str, status: int = 0) -> dict[str, bool]:
    statuses = f"statuses {status} {status}" + " 0" * ("|" in reader)
    return {
        f"status {status}": seen.status == status,
        statuses: seen.last == statuses,
        "no traceback": "Traceback" not in seen.text and "Exception ignored" not in seen.text,
    }


def _trainings(shared: Path, own: Path) -> Iterator[Outcome]:
    seen = python("rto_fast.train", *base(shared, own / "whole"), where=own)
    yield Outcome("control: a training that is read", seen, done(seen, "Finished in"))
    whole = end_state(own / "whole") if seen.status == 0 else {}
    for i, (name, reader) in enumerate(READERS.items()):
        run = own / f"run-{i}"
        seen = _line(["rto_fast.train", *base(shared, run)], reader, own)
        complete = (run / "results.json").is_file() and end_state(run) == whole
        wanted = _ended(seen, reader) | {
            "its bits are those of a training that is read": complete,
            "it has the same files": _names(run) == _names(own / "whole"),
            "they are what was written": complete and not any(map(first_damaged, _sealed(run))),
        }
        yield Outcome(f"training, {name}: {reader}", seen, wanted)


def _names(run: Path) -> set[str]:
    """Of a run's files; those of tensorboard hold the time and the process."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if "tb" not in path.parts}


def _sealed(run: Path) -> list[Path]:
    return [run, *(run / stage for stage in ("sft", "dpo", "rto"))]


def _refusals(shared: Path, own: Path) -> Iterator[Outcome]:
    """No success is made of a mistake because nobody reads of it."""
    for name in ("both never read", "both closed"):
        seen = _line(["rto_fast.train", *base(shared, own / "never"), "--seed", "x"], READERS[name], own)
        wanted = _ended(seen, READERS[name], 2) | {"no run folder": not (own / "never").exists()}
        yield Outcome(f"a refused training, {name}: {READERS[name]}", seen, wanted)


def _workers(shared: Path, own: Path) -> Iterator[Outcome]:
    """What writes as well as prints."""
    for i, name in enumerate(("both read for a line", "both closed")):
        run, reader = copied(shared, own / f"judged-{i}"), READERS[name]
        words = ["rto_fast.evaluate", "--run", str(run), "--num-prompts", "2", "--output", str(own / f"judged-by-{i}")]
        seen = _line([*words, "--judge", "implicit", "--device", "cpu"], reader, own)
        results = own / f"judged-by-{i}" / "results.json"
        written = results.is_file() and "policies" in json.loads(results.read_text())
        yield Outcome(f"evaluate, {name}: {reader}", seen, _ended(seen, reader) | {"results.json": written})
        seen = _line(["rto_fast.report", str(run)], reader, own)
        page = run / "report.html"
        written = page.is_file() and page.read_text().rstrip().endswith("</html>")
        yield Outcome(f"report, {name}: {reader}", seen, _ended(seen, reader) | {"report.html": written})


def _viewers(shared: Path, own: Path) -> Iterator[Outcome]:
    """What prints and does nothing else ends quietly, in the middle of more than a pipe holds."""
    rows = write_pairs(own / "many.jsonl", 3000)
    data = ["rto_fast.data", "--path", str(rows), "--model.path", str(shared / "model"), "--rows", "3000"]
    theory = ["rto_fast.theory", "--only", "eq-4.3", "--instances", "10"]
    for words in (data, theory):
        for name in ("stdout read for a line", "both never read", "stdout closed", "stderr closed"):
            reader = READERS[name]
            seen = _line(words, reader, own)
            wanted = _ended(seen, reader)
            if name != "stderr closed":  # else all of it is read
                lines = 2 if "head" in reader else 1
                wanted[f"{lines - 1} lines, and no word of complaint"] = len(seen.text.splitlines()) == lines
            yield Outcome(f"{words[0]}, {name}: {reader}", seen, wanted)
