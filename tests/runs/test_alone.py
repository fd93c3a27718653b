"""One process, one folder: a second run keeps out, and a signal at any moment saves and says how to go on."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from rto_fast.pipeline import compare
from rto_fast.pipeline import run as pipeline
from rto_fast.runs import folder as folder_module
from rto_fast.runs.folder import LOCK, alone
from rto_fast.tasks.quickstart import task
from rto_fast.train import main, parse
from tests.kill_harness import arguments, quickstart, setting

ROOT = Path(__file__).parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from rto_fast.runs.folder import alone
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


def test_a_lock_that_is_another_name_of_somebodys_file_is_not_written_to(tmp_path):
    """A folder from elsewhere may come with one; the run is alone in it all the same."""
    (mine := tmp_path / "notes.txt").write_text("mine\n")
    (folder := tmp_path / "run").mkdir()
    os.link(mine, folder / LOCK)
    with alone(folder):  # reading the file here would let go of the lock, as POSIX has it
        done = subprocess.run([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode and "is being written by another process; wait" in done.stderr, done.stderr
    assert mine.read_text() == "mine\n"


def simultaneous(count: int, words: list[str], place: Path) -> list[tuple[int, str]]:
    """Exit status and stderr of so many processes that start the same command at one moment."""
    ready, go = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            os.close(go)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(place / f"said-{number}", os.O_WRONLY | os.O_CREAT, 0o600), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            tqdm.set_lock(threading.RLock())
            os.read(ready, 1)  # returns in all of them when the last writing end is closed
            code = main(words)
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(ready)
    return [(code, (place / f"said-{number}").read_text()) for number, code in enumerate(codes)]


@pytest.mark.parametrize("data, begun", [("its own", True), ("the quickstart's", False)])
def test_of_simultaneous_starts_one_runs_and_the_others_say_that_the_folder_is_in_use(
    tmp_path, monkeypatch, data, begun
):
    setting(tmp_path)
    words = arguments(tmp_path, "run") if data == "its own" else quickstart(tmp_path, "run")
    if begun:
        with alone(tmp_path / "run"):  # of a run that died at once
            pass
    original = pipeline.evaluate_run

    def evaluate_run(*args):
        """Who runs goes on when the others have ended."""
        deadline = time.monotonic() + 120
        while sum("is being written" in path.read_text() for path in tmp_path.glob("said-*")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return original(*args)

    monkeypatch.setattr(pipeline, "evaluate_run", evaluate_run)
    found = simultaneous(3, words, tmp_path)
    assert sorted(code for code, _ in found) == [0, 2, 2], found
    for code, said in found:
        errors = [line for line in said.splitlines() if line.startswith("rto_fast: error: ")]
        assert len(errors) == (code == 2)
        # the process may not have written its number yet
        assert all(f"output: {tmp_path / 'run'} is being written by " in line for line in errors)
    assert (tmp_path / "run" / "results.json").is_file()
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_folder_in_use_is_known_before_models_are_loaded(holder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("the model was loaded"))
    assert main(arguments(tmp_path, "run")) == 2
    assert "is being written by process" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [False, True], ids=["a new folder", "a folder that was claimed and no more"])
def test_preflight_alone_writes_nothing(begun, tmp_path, capsys, monkeypatch):
    """On the embedded task, whose files are not there yet."""
    monkeypatch.chdir(tmp_path)
    words = quickstart(tmp_path, "run")
    if begun:
        folder_module.claim(parse(words))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    assert (tmp_path / "run" / "config.toml").exists() == begun
    seeds = ["--compare.seeds", "1", "2"] * begun
    assert main([*words, *seeds, "--preflight-only"]) == 0
    assert "export reloads" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before


@pytest.mark.parametrize("seeds", [(), ("--compare.seeds", "1", "2")], ids=["a run", "a comparison"])
def test_a_folder_is_claimed_behind_its_lock(seeds, tmp_path, monkeypatch):
    setting(tmp_path)

    def claim(config):
        assert (config.folder / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        assert not (config.folder / "config.toml").exists()
        raise KeyboardInterrupt

    for module in (pipeline, compare):
        monkeypatch.setattr(module, "claim", claim)
    assert main([*arguments(tmp_path, "run"), *seeds]) == 130
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_two_comparisons_in_one_folder_keep_out_of_each_other(tmp_path, capsys):
    setting(tmp_path)
    child = hold(tmp_path / "run")
    try:
        assert main([*arguments(tmp_path, "run"), "--compare.seeds", "1", "2"]) == 2
    finally:
        child.kill()
        child.wait()
    assert "is being written by process" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_preflight_alone_leaves_a_run_as_it_is(holder, tmp_path):
    """While another process runs there, too."""
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    assert main([*arguments(tmp_path, "run"), "--preflight-only"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before


def test_a_refused_quickstart_leaves_no_folder(tmp_path, capsys):
    assert main([*quickstart(tmp_path, "run"), "--data.max-length", "1000"]) == 2
    assert "data.max_length" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_quickstarts_task_is_kept_in_its_folder(tmp_path):
    task.write_task(tmp_path / "task", 0)
    assert main([*quickstart(tmp_path, "run"), "--stages", "sft"]) == 0
    kept = tmp_path / "run" / "task"
    for file in (tmp_path / "task").rglob("*"):
        if file.is_file():
            assert (kept / file.relative_to(tmp_path / "task")).read_bytes() == file.read_bytes()
    held = [path.read_text() for path in (tmp_path / "run").rglob("*.json") if path.is_file()]
    assert not any(
        tempfile.gettempdir() + "/tmp" in text for text in held
    )  # nor anything of where it was written first


SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def handlers():
    """Both signals end this process in their usual ways, and are left as they were found."""
    # a shell's background jobs ignore SIGINT
    found = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGINT, found[0])


PLACES = {
    "before the evaluation": "evaluate_run",
    "as models are loaded": "build",
    "as a stage is exported": "save_stage",
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_outside_of_the_steps_saves_and_ends_well(tmp_path, capsys, monkeypatch, handlers, number, place):
    setting(tmp_path)
    name = PLACES[place]
    original, sent = getattr(pipeline, name), []

    def signalled(*args):
        if not sent and "dpo" in (*args[1:], *(getattr(args[0], "parts", ()))) or name == "evaluate_run":
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*args)

    words = ["--stages", "sft", "dpo", "--checkpoint.every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, name, signalled)
        assert main(arguments(tmp_path, "run", *words)) == 0
    said = capsys.readouterr().out
    run = tmp_path / "run"
    assert sent and f"Stopped and saved in {run}; the same command goes on from here." in said
    assert (run / "dpo" / "stage.json").is_file() == (name != "build")  # an export is finished
    assert not (run / "results.json").exists()
    assert main(arguments(tmp_path, "run", *words)) == 0
    said = capsys.readouterr().out
    assert "sft: finished already" in said and ("dpo: finished already" in said) == (name != "build")
    assert (run / "results.json").is_file()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_a_run_begins_interrupts_it(tmp_path, capsys, monkeypatch, handlers, number):
    setting(tmp_path)
    monkeypatch.setattr(pipeline, "preflight", lambda *_: os.kill(os.getpid(), number))
    assert main(arguments(tmp_path, "run")) == 130
    assert "rto_fast: interrupted." in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_between_two_seeds_saves_and_ends_well(tmp_path, capsys, monkeypatch, handlers, number):
    setting(tmp_path)
    original = compare.run

    def run(config, *rest, **more):
        if config.seed == 1:
            os.kill(os.getpid(), number)
        return original(config, *rest, **more)

    words = arguments(tmp_path, "run", "--compare.seeds", "0", "1", "--stages", "sft", "dpo")
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run", run)
        assert main(words) == 0
    assert "Stopped and saved in" in capsys.readouterr().out and not (tmp_path / "run" / "results.json").exists()
    assert main(words) == 0
    assert (tmp_path / "run" / "results.json").is_file()


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
