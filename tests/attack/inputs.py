"""Data, tokenizer and models exchanged under a killed run: it goes on with what it began with, or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attack.command import Outcome, done, flip, python, refused
from tests.fuzz.place import base, contents
from tests.kill_harness import end_state

EPOCHS = "4"
"""Of sft and dpo: ten steps of each, so that a kill finds them at work."""


@dataclass(frozen=True)
class Change:
    name: str
    file: str
    make: Callable[[Path], None]
    field: str


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    for name in ("model", "pairs.jsonl", "tiny.toml"):
        copy = shutil.copytree if (shared / name).is_dir() else shutil.copy
        copy(shared / name, own / name)
    shutil.copytree(shared / "model", own / "tuned")
    seen = python("rto_fast.train", *_words(own, "whole"), where=own)
    yield Outcome("an undisturbed run", seen, done(seen, "Finished in"))
    whole = end_state(own / "whole") if seen.status == 0 else {}
    for stage in ("sft", "dpo"):
        words = _words(own, f"killed-in-{stage}")
        yield from _exchanged(own, own / f"killed-in-{stage}", stage, words, [*DATA, *MODEL])
        seen = python("rto_fast.train", *words, where=own)
        wanted = done(seen, f"{stage}: going on from step ", "Finished in")
        same = seen.status == 0 and end_state(own / f"killed-in-{stage}") == whole
        wanted |= {"its bits are an undisturbed run's": same}
        yield Outcome(f"control: killed in {stage}, nothing changed", seen, wanted)
    words = [*_words(own, "given"), "--sft.model", str(own / "tuned")]
    yield from _exchanged(own, own / "given", "dpo", words, GIVEN)
    seen = python("rto_fast.train", *words, where=own)
    yield Outcome("control: with a given sft, nothing changed", seen, done(seen, "dpo: going on from step "))


def _words(own: Path, output: str) -> list[str]:
    return [*base(own, own / output), "--checkpoint.every", "1", "--sft.epochs", EPOCHS, "--dpo.epochs", EPOCHS]


def _exchanged(own: Path, run: Path, stage: str, words: list[str], changes: list["Change"]) -> Iterator[Outcome]:
    """The run killed in a stage; then each change, the same command, and the change taken back."""
    seen = python("rto_fast.train", *words, where=own, until=lambda: _steps(run, stage) > 0)
    wanted = {"killed midway": seen.status == -9 and _steps(run, stage) > 0 and not (run / stage).exists()}
    yield Outcome(f"control: {run.name}, killed", seen, wanted)
    for change in changes:
        file = own / change.file
        before, about, held = file.read_bytes(), file.stat(), contents(run)
        change.make(file)
        seen = python("rto_fast.train", *words, where=own)
        said = f"{change.field}: {file.name} is not what this run began with ("
        wanted = refused(seen, said) | {"the run is as it was": contents(run) == held}
        yield Outcome(f"{run.name}, then {change.name}", seen, wanted)
        file.write_bytes(before)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def _steps(run: Path, stage: str) -> int:
    """Checkpoints of the stage."""
    return sum(1 for _ in (run / f"{stage}.checkpoints").glob("step-*"))


def _lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    return lambda file: _write(file, change(file.read_text().splitlines()))


def _write(file: Path, lines: list[str]) -> None:
    file.write_text("".join(line + "\n" for line in lines))


def _swapped(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    _write(file, [json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]}) for row in rows])


def _permuted(file: Path) -> None:
    """Every token gets the id of another, special ones aside."""
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    words = [word for word in vocab if not word.startswith("<")]
    vocab |= dict(zip(words, [vocab[word] for word in reversed(words)], strict=True))
    file.write_text(json.dumps(tokenizer))


DATA = [
    Change("a row removed", "pairs.jsonl", _lines(lambda rows: rows[1:]), "data.path"),
    Change("rows reversed", "pairs.jsonl", _lines(lambda rows: rows[::-1]), "data.path"),
    Change("halved", "pairs.jsonl", _lines(lambda rows: rows[: len(rows) // 2]), "data.path"),
    Change("all labels swapped", "pairs.jsonl", _swapped, "data.path"),
]
MODEL = [
    Change("tokenizer permuted", "model/tokenizer.json", _permuted, "model.path"),
    Change("a bit of a weight", "model/model.safetensors", flip, "model.path"),
]
GIVEN = [
    Change("its tokenizer permuted", "tuned/tokenizer.json", _permuted, "sft.model"),
    Change("a bit of its weights", "tuned/model.safetensors", flip, "sft.model"),
]
