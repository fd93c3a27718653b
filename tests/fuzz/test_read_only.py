"""An output folder that may be read and not written: one line, and nothing in it changes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rto_fast.train import main
from tests.fuzz.place import base, contents, make_shared

NOBODY = 65534


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    # not pytest's own folder, which others than its owner cannot enter
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    make_shared(folder)
    allow(folder)  # safetensors writes for its owner alone
    yield folder
    allow(folder)
    shutil.rmtree(folder)


def allow(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


def run_as_nobody(words: list[str]) -> int:
    """Permissions do not hold root back."""
    if os.geteuid() != 0:
        return main(words)
    os.seteuid(NOBODY)
    try:
        return main(words)
    finally:
        os.seteuid(0)


def lock(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.parametrize(
    "case, says",
    [
        ("a new folder in it", "output: "),
        ("a finished run", "could not be written (Permission denied); free disk space or fix"),
        ("a run with a stage to go", "could not be written (Permission denied); free disk space or fix"),
    ],
)
def test_a_folder_that_cannot_be_written(case, says, shared, capfd):
    output = shared / case.replace(" ", "-")
    words = base(shared, output)
    if case == "a new folder in it":
        output.mkdir()
        words = base(shared, output / "new")
    else:
        shutil.copytree(shared / "run", output)
        config = output / "config.toml"
        config.write_text(config.read_text().replace(str(shared / "run"), str(output)))
        if case == "a run with a stage to go":
            shutil.rmtree(output / "rto")
    lock(output)
    before = contents(output)
    capfd.readouterr()
    assert run_as_nobody(words) == 2
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith("rto_fast: error: ") and says in error and "Traceback" not in error
    assert contents(output) == before
