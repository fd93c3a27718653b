"""Learning curves over seeds, and the rollouts that one algorithm needs to reach what another ends with."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.report import rollouts_to_reach
from rto_fast.report.groups import read_study
from rto_fast.report.series import crossing, curve, interpolate, spread, thin, trailing
from tests.report.made_up import make_run

POINTS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def write(folder: Path, seed: int, curves: dict[str, list[float]], rollouts: int = 100, **config) -> Path:
    """A run whose members earn these returns, one per batch of 100 rollouts."""
    folder.mkdir()
    lines = [
        {"stage": stage, "step": i, "iteration": i, "answers/total": i * rollouts, "judge/return": value}
        for stage, values in curves.items()
        for i, value in enumerate(values, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    extra = "".join(f"[{k}]\npath = '{v}'\n" for k, v in config.items())
    (folder / "config.toml").write_text(f"recipe = 'made up'\nseed = {seed}\n{extra}")
    return folder


def test_bands_are_the_seeds_ends_or_students_interval():
    assert spread([2.0]) == (2.0, 2.0, 2.0)
    assert spread([1.0, 2.0, 6.0]) == (3.0, 1.0, 6.0)
    mean, low, high = spread([1.0, 2.0, 3.0, 4.0])
    half = 3.182 * math.sqrt(5 / 3) / 2
    assert (mean, low, high) == (2.5, pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    mean, low, high = spread([0.0, 1.0] * 50)
    assert high - mean == pytest.approx(1.96 * math.sqrt(25 / 99) / 10, rel=1e-3)


@given(POINTS, st.integers(1, 8))
def test_thinning_keeps_means_within_the_values(values: list[float], size: int):
    out = thin(values, size)
    assert len(out) == math.ceil(len(values) / size)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= min(out) <= max(out) <= max(values) + slack


def test_interpolation_and_crossing():
    known = [(0.0, 0.0), (10.0, 1.0), (20.0, 3.0)]
    assert interpolate(known, [-5.0, 0.0, 5.0, 15.0, 20.0, 30.0]) == [0.0, 0.0, 0.5, 2.0, 3.0, 3.0]
    assert crossing(known, 2.0) == 15.0
    assert crossing(known, 3.0) == 20.0
    assert crossing(known, 3.1) is None
    assert crossing(known, -1.0) == 0.0
    assert crossing([], 0.0) is None
    assert trailing([(1.0, 3.0), (2.0, 6.0), (3.0, 9.0), (4.0, 0.0)], 3) == [(1, 3.0), (2, 4.5), (3, 6.0), (4, 5.0)]


def test_seeds_that_are_behind_do_not_cut_a_curve_short(tmp_path: Path):
    folders = [
        write(tmp_path / "a", 0, {"rto": [0.0, 1.0, 2.0, 3.0]}),
        write(tmp_path / "b", 1, {"rto": [0.0, 3.0]}),
        write(tmp_path / "c", 2, {"ppo": [0.0]}),
        write(tmp_path / "d", 3, {"rto": [0.0, 3.0, 4.0, 5.0]}),
    ]
    (group,) = read_study(folders).groups
    found = curve(group, "rto", "judge/return")
    assert (found.x, found.mean) == ([100, 200, 300, 400], [0, 2, 3, 4])
    assert (found.low, found.high) == ([0, 1, 2, 3], [0, 3, 4, 5])
    assert (found.seeds, found.band, found.behind) == (2, "min-max", 1)
    assert curve(group, "rto", "no such metric") is None


def test_older_logs_count_rollouts_by_iteration(tmp_path: Path):
    (tmp_path / "config.toml").write_text("seed = 0\n[rto]\nrollouts = 64\n[dpo]\nbeta = 0.5\n")
    lines = [
        {"stage": "rto", "step": 8 * i + 1, "iteration": i + 1.0, "reward/implicit_per_answer": 2.0} for i in range(3)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (group,) = read_study([tmp_path]).groups
    found = curve(group, "rto", "implicit_reward")
    assert (found.x, found.mean, found.band) == ([64, 128, 192], [1.0, 1.0, 1.0], "")


def test_rollouts_to_reach_reads_averaged_curves(tmp_path: Path):
    fast, slow = [0.0, 6.0, 6.0, 6.0, 6.0, 6.0], [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    rows = rollouts_to_reach([write(tmp_path / "a", 0, {"rto": fast, "ppo": slow})])
    by = {(r["policy"], r["rival"]): r for r in rows}
    assert set(by) == {("rto", "ppo"), ("ppo", "rto")}
    row = by["rto", "ppo"]
    # averaged over three batches rto is 0, 3, 4, ...: it reaches 3 with its second batch
    assert (row["target"], row["rollouts"], row["rival_rollouts"], row["share"]) == (3.0, 200.0, 600.0, 1 / 3)
    assert row["curves"]["rto"]["mean"][:3] == [0.0, 3.0, 4.0] and row["curves"]["ppo"]["rollouts"][-1] == 600
    assert row["seeds"] == {"0": 200.0}
    assert (by["ppo", "rto"]["rollouts"], by["ppo", "rto"]["share"]) == (None, None)
    assert (row["policy_rollouts"], row["rival_rollouts"]) == (600, 600)
    json.dumps(rows, allow_nan=False)
    (plain,) = [r for r in rollouts_to_reach([tmp_path / "a"], window=1) if r["policy"] == "rto"]
    assert plain["rollouts"] == 150.0
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        rollouts_to_reach([tmp_path / "a"], window=0)


def test_who_begins_above_a_rivals_end_needs_no_rollouts(tmp_path: Path):
    rows = rollouts_to_reach([write(tmp_path / "a", 0, {"rto": [0.0, 1.0], "ppo": [0.0, -1.0]})])
    row = next(r for r in rows if r["policy"] == "rto")
    assert (row["rollouts"], row["share"], row["seeds"]) == (0.0, 0.0, {"0": 0.0})


def test_only_members_on_the_same_ground_are_paired(tmp_path: Path):
    curves = {"rto": [0.0, 1.0]}
    a, b, c = (write(tmp_path / n, 0, curves, data=d) for n, d in (("a", "one"), ("b", "one"), ("c", "two")))
    (tmp_path / "b" / "config.toml").open("a").write("split = 'test'\n")
    rows = rollouts_to_reach([a, b, c])
    assert {(r["policy"], r["rival"]) for r in rows} == {("rto A", "rto B"), ("rto B", "rto A")}


def test_made_up_seeds_find_rto_ahead(tmp_path: Path):
    rows = rollouts_to_reach([make_run(tmp_path / str(s), seed=s) for s in range(3)])
    row = next(r for r in rows if (r["policy"], r["rival"]) == ("rto", "ppo"))
    assert 0.1 < row["share"] < 0.35 and len(row["seeds"]) == 3
    assert len(rows) == 20


def test_a_rivals_last_return_is_the_target_and_its_rollouts_are_the_measure(tmp_path: Path):
    # the rival was higher before, and went further than the policy
    curves = {"rto": [0.0, 2.0, 5.0], "ppo": [0.0, 4.0, 1.0, 1.0]}
    rows = rollouts_to_reach([write(tmp_path / "a", 0, curves)], window=1)
    row = next(r for r in rows if r["policy"] == "rto")
    assert (row["target"], row["rollouts"], row["policy_rollouts"], row["rival_rollouts"]) == (1.0, 150.0, 300, 400)
    assert row["share"] == 150 / 400


def test_returns_of_different_judges_are_not_paired(tmp_path: Path):
    folders = [write(tmp_path / name, 0, {"rto": [0.0, 1.0]}, data="one") for name in "ab"]
    for folder, judge in zip(folders, ("oracle_return", "score"), strict=True):
        (folder / "results.json").write_text(json.dumps({"judge": judge}))
    with (tmp_path / "b" / "config.toml").open("a") as file:
        file.write("split = 'test'\n")
    assert rollouts_to_reach(folders) == []
    (folders[1] / "results.json").write_text(json.dumps({"judge": "oracle_return"}))
    assert len(rollouts_to_reach(folders)) == 2
