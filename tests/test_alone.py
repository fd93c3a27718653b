"""One process, one folder: a second run keeps out, and a signal between two stages still says how to go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rto_fast import folder as folder_module
from rto_fast.folder import LOCK, alone
from rto_fast.train import main
from tests.kill_harness import arguments, setting

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time
from pathlib import Path
from rto_fast.folder import alone
with alone(Path(sys.argv[1])):
    if os.fork() == 0:  # as a worker of the run would
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen:
    """Another process, with a child of its own, that runs in `folder`."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    return child


@pytest.fixture
def holder(tmp_path):
    setting(tmp_path)
    assert main(arguments(tmp_path, "run")) == 0
    child = hold(tmp_path / "run")
    yield child
    child.kill()
    child.wait()


def test_a_second_run_keeps_out_until_the_first_is_gone(holder, tmp_path, capsys):
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(arguments(tmp_path, "run")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"rto_fast: error: output: {run} is being written by process {holder.pid} on ")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    holder.kill()
    holder.wait()
    assert main(arguments(tmp_path, "run")) == 0


def test_children_of_a_killed_run_do_not_hold_its_folder(tmp_path):
    """A lock that children inherit would keep the same command from going on."""
    child = hold(tmp_path)
    child.kill()
    child.wait()
    with alone(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_module.fcntl, "lockf", refuse)
    with alone(tmp_path):
        assert (tmp_path / LOCK).read_text() == ""


def test_several_processes_of_torchrun_are_refused(tmp_path, capsys, monkeypatch):
    setting(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(tmp_path, "run")) == 2
    assert "error: WORLD_SIZE: rto_fast trains in one process, got 2;" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_two_stages_says_how_to_go_on(tmp_path, capsys, monkeypatch, number):
    from rto_fast import pipeline

    setting(tmp_path)
    monkeypatch.setattr(pipeline, "evaluate_run", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    # a shell's background jobs ignore SIGINT
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(arguments(tmp_path, "run")) == 130
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "rto_fast: interrupted. Finished stages and checkpoints are kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments(tmp_path, "run")) == 0
    assert "rto: finished already" in capsys.readouterr().out


def test_torchrun_with_one_process(tmp_path):
    setting(tmp_path)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "rto_fast.train"]
    done = subprocess.run(
        [*words, *arguments(tmp_path, "run")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
