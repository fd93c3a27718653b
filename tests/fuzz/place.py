"""Where a malformed input is made: a good model, good pairs and a finished run, shared; a folder of its own."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rto_fast.train import main
from tests.tiny_run import SETTINGS, write_model, write_pairs

Content = bytes | str | dict | list | None


@dataclass(frozen=True)
class Case:
    """One malformed input."""

    name: str
    make: Callable[["Place"], list[str]]
    """Writes it and returns the flags that name it."""
    says: tuple[str, ...]
    """What the error must hold: the field or the file, and words of the fix."""


@dataclass(frozen=True)
class Place:
    shared: Path
    own: Path

    @property
    def run(self) -> Path:
        """A finished run."""
        return self.shared / "run"

    def file(self, name: str, content: Content) -> Path:
        return put(self.own / name, content)

    def model(self, field: str = "model.path", /, source: Path | None = None, **files: Content) -> list[str]:
        """A copy of the model with some files changed; a file's dots are written as __, None removes it."""
        folder = self.own / "model"
        shutil.copytree(source or self.shared / "model", folder)
        for name, content in files.items():
            put(folder / name.replace("__", "."), content)
        return [f"--{field}", str(folder)]

    def changed(self, name: str, source: str = "model", **values: Any) -> dict:
        """A JSON file of the model with some values changed."""
        return {**json.loads((self.shared / source / name).read_text()), **values}

    def rows(self, name: str, content: Content) -> list[str]:
        return ["--data.path", str(self.file(name, content))]

    def recipe(self, text: str | bytes) -> list[str]:
        return ["--recipe", str(self.file("recipe.toml", text))]


def put(file: Path, content: Content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def base(shared: Path, output: Path) -> list[str]:
    """The flags of a good run; a case's own flags come behind them."""
    return [
        *("--recipe", str(shared / "tiny.toml"), "--model.path", str(shared / "model")),
        *("--data.path", str(shared / "pairs.jsonl"), "--output", str(output), "--device", "cpu"),
    ]


def make_shared(folder: Path) -> Path:
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(SETTINGS)
    assert main(base(folder, folder / "run")) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link of a folder and what it holds; of a lock, which names the process, that it is there."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[name] = "" if path.name == ".lock" else found[name]
    return found
