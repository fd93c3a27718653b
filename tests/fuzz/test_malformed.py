"""Every malformed input: exit status 2, one line that names the field or the file, and nothing changed or run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from rto_fast import train
from rto_fast.config.recipe import plain
from rto_fast.data import template
from rto_fast.data.__main__ import main as show
from rto_fast.train import main
from tests.fuzz import outputs, rows, settings, vocabularies, weights
from tests.fuzz.place import Case, Place, base, contents, make_shared

CASES = {case.name: case for module in (rows, weights, vocabularies, settings, outputs) for case in module.cases()}
SHOWN = [case.name for case in (*rows.syntax(), *vocabularies.tokenizers())]
"""Cases that go through `python -m rto_fast.data` too."""
HARMLESS_TO_SHOW = ("data.held_out", "data.max_length", "vocab", "nan")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return make_shared(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def place(shared, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)  # a hostile module would leave its mark here
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(template, "SECONDS", 0.3)
    monkeypatch.setattr(template, "MEGABYTES", 256)
    return Place(shared, tmp_path)


def command(case: Case, place: Place, monkeypatch) -> list[str]:
    """The case's command; its output folder holds a run of the very same settings, where these can be read at all."""
    flags = case.make(place)
    output = place.own / "out"
    words = [*base(place.shared, output), *flags]
    if "--output" not in flags:
        shutil.copytree(place.run, output)
        (output / "inputs.json").unlink()  # other inputs than the run's are what most cases are
        once = OnceParsed(words)
        if once.error is None:
            (output / "config.toml").write_text(tomli_w.dumps(plain(once.config)))
        monkeypatch.setattr(train, "parse", once)
    return words


class OnceParsed:
    """What `parse` says to the same words again: reading them twice would take half of this file's time."""

    def __init__(self, words: list[str]):
        self.words, self.config, self.error = words, None, None
        try:
            self.config = train.parse(words)
        except ValueError as error:
            self.error = error

    def __call__(self, words: list[str]):
        assert words == self.words
        if self.error is not None:
            raise self.error
        return self.config


def judge(case: Case, error: str) -> None:
    lines = error.splitlines()
    assert 1 <= len(lines) <= 3, error[:2000]
    assert "Traceback" not in error and "\x1b" not in error and len(error) < 2500
    assert all(words in error for words in case.says), error


@pytest.mark.parametrize("name", CASES)
def test_malformed_input(name, place, capfd, monkeypatch):
    case = CASES[name]
    words = command(case, place, monkeypatch)
    before, finished = contents(place.own), contents(place.run)
    capfd.readouterr()
    assert main(words) == 2
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith("rto_fast: error: ")
    judge(case, error)
    after = contents(place.own)
    if "out/inputs.json" not in before:  # it is there when a case is found out after the run has begun
        after.pop("out/inputs.json", None)
    assert after == before and contents(place.run) == finished


def test_there_are_enough_of_them():
    everything = [case for m in (rows, weights, vocabularies, settings, outputs) for case in m.cases()]
    assert len(everything) == len(CASES) >= 500


@pytest.mark.parametrize("name", SHOWN)
def test_malformed_rows_and_tokenizers_are_not_shown(name, place, capfd, monkeypatch):
    case = CASES[name]
    if any(part in words for part in HARMLESS_TO_SHOW for words in case.says):
        pytest.skip("nothing is wrong with it before it meets a model")
    flags = dict(zip(*[iter(case.make(place))] * 2, strict=True))
    good = {"--path": str(place.shared / "pairs.jsonl"), "--model.path": str(place.shared / "model")}
    flags = good | {flag.replace("data.", ""): value for flag, value in flags.items()}
    monkeypatch.setattr(sys, "argv", ["rto_fast.data", *(word for pair in flags.items() for word in pair)])
    assert show() == 2
    error = capfd.readouterr().err
    assert error.startswith("rto_fast: error: ")
    judge(case, error)


SUBPROCESSES = [
    "rows: NaN",
    "config.json: code of its own",
    "flags: --rto.rolouts 8",
]


@pytest.mark.parametrize("name", SUBPROCESSES)
def test_as_a_user_calls_it(name, place, monkeypatch):
    case = CASES[name]
    words = command(case, place, monkeypatch)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    before = contents(place.own)
    done = subprocess.run(
        [sys.executable, "-m", "rto_fast.train", *words], cwd=place.own, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    judge(case, done.stderr)
    assert contents(place.own) == before


def test_the_flag_shows_the_traceback(place, capfd, monkeypatch):
    words = command(CASES["weights: one byte short"], place, monkeypatch)
    capfd.readouterr()
    assert main([*words, "--traceback"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("rto_fast: error: model.path: ")
