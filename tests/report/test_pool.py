"""Figures pooled over seeds, timings over restarts, and the plain data of a whole report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rto_fast.report import pool, summarise
from rto_fast.report.groups import letter, read_study
from rto_fast.report.read import read_run
from tests.report.made_up import MEMBERS, make_run


def test_pooling_holds_the_seeds_own_spread():
    found = pool.pool([(1.0, 0.3), (2.0, 0.4), (2.5, 0.2)])
    deviation = math.sqrt(((1 - 5.5 / 3) ** 2 + (2 - 5.5 / 3) ** 2 + (2.5 - 5.5 / 3) ** 2) / 2)
    half = 4.303 * deviation / math.sqrt(3)  # Student's t at 0.975, two degrees of freedom
    assert found == {"mean": 5.5 / 3, "ci95": pytest.approx(half), "low": 1.0, "high": 2.5, "seeds": 3}


def test_seeds_that_agree_leave_the_prompts_interval():
    found = pool.pool([(1.0, 0.3), (1.0, 0.4)])
    assert found == {"mean": 1.0, "ci95": pytest.approx(0.25), "low": 1.0, "high": 1.0, "seeds": 2}
    assert pool.pool([(1.0, 0.3)])["ci95"] == 0.3


def test_a_pooled_interval_covers_what_training_would_give_again():
    """Seeds differ in training (0.2) and in prompts (0.05): the prompts' interval alone misses most of the time."""
    rng = np.random.default_rng(0)
    inside = prompts_alone = 0
    for _ in range(1000):
        means = 1.0 + rng.normal(0, 0.2, 3) + rng.normal(0, 0.05, 3)
        found = pool.pool([(float(m), 1.96 * 0.05) for m in means])
        inside += abs(found["mean"] - 1) <= found["ci95"]
        prompts_alone += abs(found["mean"] - 1) <= 1.96 * 0.05 / math.sqrt(3)
    assert 0.93 <= inside / 1000 <= 0.97 and prompts_alone / 1000 < 0.5


def test_estimates_are_read_from_whatever_results_json_holds():
    assert pool.estimate({"mean": 1, "ci95": -0.5}) == (1.0, 0.5)
    assert pool.estimate(0.5) == (0.5, 0.0)
    assert [pool.estimate(x) for x in (None, {}, {"mean": "1"}, [1], {"mean": math.nan}, True)] == [None] * 6


def test_a_group_is_one_configuration(tmp_path: Path):
    folders = [make_run(tmp_path / f"s{s}", seed=s) for s in (1, 0)] + [make_run(tmp_path / "other", iterations=5)]
    study = read_study([*folders, make_run(tmp_path / "again", seed=0)])
    assert [(g.letter, [r.seed for r in g.runs]) for g in study.groups] == [("A", [0, 1]), ("B", [0])]
    (note,) = study.notes
    assert "again repeats the configuration and seed of" in note
    assert study.members()[0][2] == "ppo A"
    assert [letter(i) for i in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]


def test_runs_without_a_configuration_are_not_pooled(tmp_path: Path):
    folders = [make_run(tmp_path / f"s{s}", seed=s) for s in (0, 1)]
    for folder in folders:
        (folder / "config.toml").unlink()
    assert [len(g.runs) for g in read_study(folders).groups] == [1, 1]


def test_the_summary_is_plain_data(tmp_path: Path):
    found = summarise([make_run(tmp_path / str(s), seed=s) for s in range(2)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (group,) = found["groups"]
    assert (group["seeds"], group["judge"], list(group["curves"])) == ([0, 1], "oracle_return", list(MEMBERS))
    figures = group["policies"]["rto"]["oracle_return"]
    assert figures["seeds"] == 2 and figures["low"] <= figures["mean"] <= figures["high"]
    assert figures["ci95"] >= 0.09 / math.sqrt(2)
    assert group["win_rate"]["rto"]["dpo"]["mean"] > 0.5
    assert group["curves"]["rto"]["judge/return"]["rollouts"][-1] == 24 * 256
    assert group["credit_auc"]["mean"] == pytest.approx(0.942)
    assert found["differences"] == [] and len(found["rollouts_to_reach"]) == 20


def test_times_count_over_restarts(tmp_path: Path):
    seconds = [1.0, 2.0, 5.0, 0.5, 1.5]  # stopped after 5, gone on for 1.5
    lines = [{"stage": "rto", "step": i, "iteration": i, "seconds": s} for i, s in enumerate(seconds)]
    # the last update's time would come with the next iteration
    lines = [{**line, **({"time/update": 0.5} if i else {})} for i, line in enumerate(lines)]
    lines = [{**line, "time/rollout": 0.25, "memory/peak_mb": 10.0 * i} for i, line in enumerate(lines)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (row,) = pool.timings(read_run(tmp_path))
    assert row["seconds"] == pytest.approx(6.5)
    assert row["phases"] == {"rollout": pytest.approx(1.25), "update": pytest.approx(2.5)}
    assert (row["peak_mb"], row["tokens_per_second"], row["steps"]) == (40.0, None, 5)


@pytest.mark.parametrize("broken", [[], 7, "x", {"rto": 3}, {"rto": {"kl": "x"}}, {"rto": {"kl": {"mean": None}}}])
def test_results_of_another_shape_hold_no_figures(tmp_path: Path, broken):
    (tmp_path / "results.json").write_text(json.dumps({"policies": broken, "win_rate": broken, "judge": broken}))
    (group,) = summarise([tmp_path])["groups"]
    assert not any(group["policies"].values()) and not any(group["win_rate"].values())
