"""Run folders of any quality: what can be read is kept, the rest is counted and said."""

import json
import os
from pathlib import Path

import pytest

from rto_fast.report import read
from rto_fast.report.read import MAX_LINE, expand, number, read_run
from tests.report.made_up import make_run


def test_a_whole_run(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", seed=3))
    assert (run.recipe, run.seed, run.faults) == ("compare", 3, [])
    assert list(run.metrics) == ["sft", "dpo", "rm", "ppo", "sparse_dpo", "semi_rto", "rs_ppo", "rto"]
    assert len(run.answers) == 42 and len(run.heatmaps) == 2


def test_missing_files_are_said(tmp_path: Path):
    (tmp_path / "results.json").write_text("{}")
    assert read_run(tmp_path).faults == [
        f"{name} is missing" for name in ("config.toml", "metrics.jsonl", "answers.jsonl", "heatmaps.json")
    ]


def test_broken_lines_are_counted(tmp_path: Path):
    good = json.dumps({"stage": "rto", "step": 1, "loss": 0.5})
    lines = ["{broken", "[1, 2]", "[" * 100_000, good, '{"stage": 3, "step": 1}', "7", "", '{"stage": "rto", "st']
    (tmp_path / "metrics.jsonl").write_bytes(
        "\n".join(lines).encode() + b"\n\xff\xfe\n" + b'"' + b"x" * (2 * MAX_LINE) + b'"\n' + good.encode()
    )
    run = read_run(tmp_path)
    assert len(run.metrics["rto"]) == 2
    assert "metrics.jsonl: 6 broken lines were passed over" in run.faults
    assert "metrics.jsonl: 1 line of more than 4 MiB passed over" in run.faults


@pytest.mark.parametrize(
    "name, text", [("config.toml", "a = "), ("results.json", "[" * 100_000), ("heatmaps.json", "{")]
)
def test_a_broken_file_is_said(tmp_path: Path, name: str, text: str):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    assert read_run(folder).faults == [f"{name} is broken and was not read"]


@pytest.mark.parametrize("make, what", [(os.mkfifo, "a pipe"), (lambda file: file.symlink_to("/dev/zero"), "a device")])
@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "results.json", "answers.jsonl", "heatmaps.json"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str, make, what: str):
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    make(folder / name)
    assert read_run(folder).faults == [f"{name} was not read: it is {what}, not a regular file"]


def test_lines_beyond_the_bound_are_not_read(tmp_path: Path, monkeypatch):
    line = json.dumps({"stage": "rto", "step": 1}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line * 100)
    monkeypatch.setattr(read, "MAX_LINES", 10 * len(line))
    run = read_run(tmp_path)
    assert len(run.metrics["rto"]) == 10 and "metrics.jsonl: only its first 0 MiB were read" in run.faults


def test_a_line_that_does_not_end_is_not_read_beyond_the_bound(tmp_path: Path, monkeypatch):
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # no disk holds it
    monkeypatch.setattr(read, "MAX_LINES", 3 * MAX_LINE)
    faults = read_run(tmp_path).faults
    assert "metrics.jsonl: only its first 12 MiB were read" in faults
    assert "metrics.jsonl: 1 line of more than 4 MiB passed over" in faults


def test_a_file_beyond_the_bound_is_not_compared_with_its_digest(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / "manifest.json").write_text(json.dumps({"results.json": "0" * 64}))
    with (folder / "results.json").open("wb") as file:
        file.truncate(1 << 40)
    said = "results.json is not what the run wrote and was not read; the command that wrote it makes it again"
    assert said in read_run(folder).faults


def test_a_configuration_nested_too_deeply_is_broken(tmp_path: Path):
    (tmp_path / "config.toml").write_text("a." * 64_000 + "b = 1")
    assert "config.toml is broken and was not read" in read_run(tmp_path).faults


@pytest.mark.parametrize("shape", ["[]", '"text"', "7", "null"])
def test_files_of_another_shape_hold_nothing(tmp_path: Path, shape: str):
    for name in ("results.json", "heatmaps.json"):
        (tmp_path / name).write_text(shape)
    run = read_run(tmp_path)
    assert (run.results, run.heatmaps, run.recipe, run.seed) == ({}, [], tmp_path.name, None)


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_number(value):
    assert number(value) is None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path, "no run of rto_fast"), (tmp_path / "no", "not there"), (tmp_path / "file", "a file")):
        with pytest.raises(ValueError, match=why):
            read_run(path)


def test_a_comparison_stands_for_its_runs_and_each_counts_once(tmp_path: Path):
    seeds = [make_run(tmp_path / f"seed-{s}", seed=s) for s in (0, 1)]
    (tmp_path / "results.json").write_text("{}")
    assert expand([tmp_path, seeds[1], tmp_path / "seed-0" / ".." / "seed-0"]) == seeds
    assert expand([seeds[0]]) == [seeds[0]]
