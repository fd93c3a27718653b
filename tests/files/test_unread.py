"""Readers of the output that go away: a run is done to its end without them, and the exit status says what was done."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

from rto_fast import cli
from rto_fast.files.unread import Unread, unread
from tests.kill_harness import arguments, setting

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


def shell(command: str, *words: str) -> subprocess.CompletedProcess:
    """bash's `command`, in which "$@" stands for a module and its words; its stdout is the statuses of the pipe."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", *words],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def place(tmp_path) -> Path:
    setting(tmp_path)
    return tmp_path


STATUS = "; echo ${PIPESTATUS[0]} >&3; } 3>&1 >/dev/null"
PIPES = {
    "both read for a line": '{ "$@" 2>&1 | head -1' + STATUS,
    "both never read": '{ "$@" 2>&1 | true' + STATUS,
    "stderr alone never read": '{ "$@" 2> >(true) >/dev/null | cat' + STATUS,
    "both closed": '"$@" >&- 2>&- 3>&-; echo $?',
}


@pytest.mark.parametrize("name", PIPES)
def test_a_run_is_done_without_its_readers(place, name):
    words = arguments(place, "run", "--stages", "sft", "dpo")
    done = shell(PIPES[name], "rto_fast.train", *words)
    assert done.stdout.split() == ["0"] and "Traceback" not in done.stderr + done.stdout
    assert json.loads((place / "run" / "results.json").read_text())["policies"]
    assert (place / "run" / "dpo" / "stage.json").is_file()


@pytest.mark.parametrize("pipe", ["both never read", "both closed"])
def test_a_run_that_is_refused_says_so_in_its_status(place, pipe):
    done = shell(PIPES[pipe], "rto_fast.train", *arguments(place, "run", "--seed", "x"))
    assert done.stdout.split() == ["2"] and not (place / "run").exists()


def viewed(place: Path) -> dict[str, list[str]]:
    """Commands that print, by name."""
    (place / "config.toml").write_text("")
    return {
        "data": ["rto_fast.data", "--path", str(place / "pairs.jsonl"), "--model.path", str(place / "model")],
        "report": ["rto_fast.report", str(place)],
        "theory": ["rto_fast.theory", "--only", "eq-4.3", "--instances", "10"],
    }


@pytest.mark.parametrize("name", ["data", "report", "theory"])
def test_a_viewer_ends_quietly_without_a_reader(place, name):
    done = shell('{ "$@" | true' + STATUS, *viewed(place)[name])
    assert done.stdout.split() == ["0"] and done.stderr == ""
    assert (place / "report.html").is_file() == (name == "report")


@pytest.mark.parametrize("name", ["data", "report", "theory"])
def test_a_closed_stdout_is_no_fault(place, name):
    done = shell('"$@" >&-', *viewed(place)[name])
    assert done.returncode == 0 and done.stderr == ""


def left(number: int):
    """A stream over a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=number)


@pytest.mark.parametrize("buffering", [1, 1 << 13], ids=["by lines", "by blocks"])
def test_all_that_writes_survives(buffering, monkeypatch):
    monkeypatch.setattr(sys, "stdout", left(buffering))
    monkeypatch.setattr(sys, "stderr", left(buffering))
    with unread():
        log = logging.getLogger("rto_fast.test")
        log.addHandler(logging.StreamHandler())
        for _ in range(3):
            print("x" * 20_000, flush=True)
            log.warning("a line")
            warnings.warn("another", stacklevel=1)
            tqdm.write("text", file=sys.stderr)
            with tqdm(range(3), mininterval=0) as bar:
                for _ in bar:
                    bar.set_postfix({"loss": 1.0})
            os.write(sys.stdout.fileno(), b"what another language writes")
    for stream in (sys.stdout, sys.stderr):
        stream.close()  # and what they still held makes no trouble


def test_other_refusals_are_not_swallowed(tmp_path):
    with open("/dev/full", "w") as full, pytest.raises(OSError, match="No space left"):
        Unread(full).write("x" * 100_000)


def test_a_broken_pipe_that_is_not_the_outputs_is_no_success(capsys):
    def work(words):
        raise BrokenPipeError(32, "Broken pipe")

    assert cli.run(work, [], "") == 2
    assert "rto_fast: error: [Errno 32] Broken pipe" in capsys.readouterr().err


def test_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    assert cli.run(lambda words: print("x"), [], "") == 0
    assert (sys.stdout, sys.stderr) == before
