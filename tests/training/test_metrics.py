"""Where a stage's numbers go, and the clock's own."""

import json
import time

from rto_fast.training import metrics
from rto_fast.training.metrics import SHOWN, StageLog
from tests.stages.test_stages import CONFIG, make_rto, run


def test_a_line_has_the_stage_the_step_the_seconds_and_every_number(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    with StageLog(tmp_path, "rto", 3) as log:
        now = 102.5
        log(1, {"loss": 0.25, "kl/per_answer": 1.5})
        now = 104.0
        log(3, {"loss": -0.125, "guard/kl": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "rto", "step": 1, "seconds": 2.5, "loss": 0.25, "kl/per_answer": 1.5},
        {"stage": "rto", "step": 3, "seconds": 4.0, "loss": -0.125, "guard/kl": 9.0},
    ]


def test_the_bar_shows_its_few_numbers_by_their_short_names_and_keeps_what_is_not_new(tmp_path):
    numbers = {name: float(i) for i, name in enumerate(SHOWN)}
    with StageLog(tmp_path, "rto", 4) as log:
        log(1, {**numbers, "kl/k3": 77.0})
        assert log.shown == {short: f"{i}" for i, short in enumerate(SHOWN.values())} and log.bar.n == 1
        log(3, {"loss": 0.123456})
        assert log.shown == {**{short: f"{i}" for i, short in enumerate(SHOWN.values())}, "loss": "0.1235"}
        assert log.bar.n == 3
        log.note("8/16 answers")
        assert "now=8/16 answers" in log.bar.postfix


def test_an_iteration_says_how_long_each_of_its_parts_took(monkeypatch):
    """A rollout takes 5 seconds here, its scoring 2, and each of the update's four steps 1."""
    now = 0.0

    def taking(seconds, plain):
        def slowly(*args, **kwargs):
            nonlocal now
            now += seconds
            return plain(*args, **kwargs)

        return slowly

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    stage, state = make_rto(CONFIG)
    collector = stage.collector
    collector.answer, collector.experience = taking(5, collector.answer), taking(2, collector.experience)
    stage._step = taking(1, stage._step)
    logs = []
    run(stage, state, logs)
    times = [{name: x for name, x in m.items() if name.startswith("time/")} for m in logs]
    assert [t for t in times if t] == [
        {"time/rollout": 5.0, "time/score": 2.0},
        {"time/rollout": 5.0, "time/score": 2.0, "time/update": 4.0},
    ]
    assert [m["answers/total"] for m in logs if "iteration" in m] == [16, 32]
