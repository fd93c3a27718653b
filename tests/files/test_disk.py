"""A disk that is full at any write: one line, whole checkpoints, and the same bits once there is room again."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rto_fast.files.disk import appending, write_whole, writing

ROOT = Path(__file__).parents[2]


def test_refusals_all_along_a_run(tmp_path):
    """Every 14th change of the run, once with nothing written and once with a file cut; the script takes them all."""
    script = Path(__file__).parents[1] / "disk_harness.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(tmp_path), "14"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    count = int(done.stdout.splitlines()[-1].split()[0])
    assert count >= 24 and f"{count} refusals, {count} met with one line and made good bit for bit" in done.stdout


def test_what_stood_there_stays(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_whole(file, "before")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="results.json could not be written .No space left"),
    ):
        patch.setattr(Path, "write_bytes", full)
        write_whole(file, "after")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(OSError, match="^it could not be written .*; free disk space or fix the folder's permissions"):
        with writing("it"):
            raise PermissionError(errno.EACCES, "Permission denied")


def test_no_line_is_added_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="it is a pipe, not a regular file"):
        appending(tmp_path / "metrics.jsonl")


def test_what_is_in_the_way_is_to_be_removed(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "elsewhere")
    for name in ("metrics.jsonl", "linked.jsonl"):
        with pytest.raises(
            OSError, match=r"^it could not be written \(.*\); remove it, then the same command goes on$"
        ):
            with writing("it"):
                appending(tmp_path / name)
    with pytest.raises(OSError, match="metrics.jsonl could not be written .it is there and is no file.; remove it,"):
        write_whole(tmp_path / "metrics.jsonl", "text")
