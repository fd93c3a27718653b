"""metrics.jsonl over several attempts at a stage: no step twice, and nothing of other stages lost."""

import json

from rto_fast.training.metrics import StageLog


def test_a_stage_that_goes_on_drops_only_what_it_makes_again(tmp_path):
    with StageLog(tmp_path, "sft", 2) as log:
        log(1, {"loss": 1.0})
        log(2, {"loss": 0.5})
    with StageLog(tmp_path, "dpo", 3) as log:
        for step in (1, 2, 3):
            log(step, {"loss": float(step)})
    with StageLog(tmp_path, "dpo", 3, done=1) as log:
        log(2, {"loss": 20.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["step"], x["loss"]) for x in lines] == [
        ("sft", 1, 1.0), ("sft", 2, 0.5), ("dpo", 1, 1.0), ("dpo", 2, 20.0)
    ]  # fmt: skip
