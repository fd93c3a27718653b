"""What goes wrong on one rank ends all of them, with one sentence, and the same command goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rto_fast.train import main
from tests.kill_harness import setting
from tests.ranks.torchrun import ENVIRONMENT, ROOT, begin, same_bits, steps, train, words

LONG = (
    "--stages",
    "sft",
    "--sft.epochs",
    "60",
    "--sft.batch-size",
    "4",
    "--checkpoint.every",
    "3",
    "--eval.prompts",
    "0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    setting(folder)
    train(2, words(folder, "whole", *LONG))
    return folder


def rank_of(process: subprocess.Popen, number: int) -> int:
    """The process id of a rank."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for pid in found.split():
        environment = Path("/proc", pid, "environ").read_bytes().split(b"\0")
        if f"RANK={number}".encode() in environment:
            return int(pid)
    raise AssertionError(found)


def running(folder: Path, name: str) -> subprocess.Popen:
    """A run of two ranks that has saved something."""
    process = begin(2, words(folder, name, *LONG))
    while not list((folder / name).glob("sft.checkpoints/step-????????/manifest.json")):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
    return process


def one_sentence(err: str) -> str:
    (line,) = (line for line in err.splitlines() if line.startswith("rto_fast: error: "))
    return line


@pytest.mark.parametrize("number", [1, 0])
def test_a_killed_rank_ends_the_other_and_nothing_is_lost(folder, number):
    process = running(folder, f"killed{number}")
    os.kill(rank_of(process, number), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode
    if number:  # who is killed says nothing
        assert "WORLD_SIZE: another process of this run has ended, as one does that was killed" in one_sentence(err)
    assert "going on from step" in train(2, words(folder, f"killed{number}", *LONG))
    assert same_bits(folder / f"killed{number}" / "sft", folder / "whole" / "sft")
    assert steps(folder / f"killed{number}", "sft") == steps(folder / "whole", "sft")


def test_a_signal_to_one_rank_stops_all_of_them_well_and_one_process_goes_on(folder, capsys):
    process = running(folder, "asked")
    os.kill(rank_of(process, 1), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-2000:]
    assert out.count("Stopped and saved in") == 1
    assert main(words(folder, "asked", *LONG)) == 0
    assert "going on from step" in capsys.readouterr().out
    theirs, ours = steps(folder / "whole", "sft")[-1], steps(folder / "asked", "sft")[-1]
    assert ours == {k: pytest.approx(x, rel=1e-3, abs=1e-5) for k, x in theirs.items()}


def by_hand(folder: Path, *apart: list[str]) -> list[tuple[int, str]]:
    """Exit status and stderr of ranks that are started one by one, each with words of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for number, more in enumerate(apart):
        own = {"RANK": str(number), "WORLD_SIZE": str(len(apart)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "rto_fast.train", *words(folder, "apart", *LONG, *more)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | own, **pipes))
    return [(child.wait(timeout=60), child.communicate()[1]) for child in children]


def test_ranks_that_differ_are_found_at_the_start(folder):
    (first, said), (second, silence) = by_hand(folder, [], ["--sft.optim.lr", "0.5"])
    assert first == second == 2 and "rto_fast: error" not in silence
    assert "WORLD_SIZE: process 1 has another settings than process 0" in one_sentence(said)
    assert not (folder / "apart").exists()


def test_what_one_rank_cannot_read_is_said_by_the_first(folder, tmp_path):
    (first, said), (second, _) = by_hand(folder, [], ["--data.path", str(tmp_path / "nowhere.jsonl")])
    assert first == second == 2
    assert "process 1 has ended: data.path: " in one_sentence(said)


@pytest.mark.parametrize(
    "size, said", [("two", "WORLD_SIZE: must be a number of processes"), ("0", "WORLD_SIZE: must be")]
)
def test_a_number_of_processes_that_is_none(folder, size, said):
    command = [sys.executable, "-m", "rto_fast.train", *words(folder, "none", *LONG)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | {"WORLD_SIZE": size}, capture_output=True, text=True)
    assert done.returncode == 2 and said in one_sentence(done.stderr)


def test_several_seeds_are_for_one_process(folder):
    command = [sys.executable, "-m", "rto_fast.train", *words(folder, "seeds", *LONG, "--compare.seeds", "0", "1")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | {"WORLD_SIZE": "2"}, capture_output=True, text=True)
    assert done.returncode == 2 and "compare.seeds: several seeds take one process, got 2" in one_sentence(done.stderr)
