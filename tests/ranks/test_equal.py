"""Of one run, however many processes train it: the same rewards bit for bit, the same weights to their last digits."""

from pathlib import Path

import pytest
import torch

from rto_fast.train import main
from tests.kill_harness import setting
from tests.ranks.torchrun import distance, same_bits, steps, train, words

PAID = ("--rto.reward.beta-3", "0.5", "--rto.group", "4")
SMALLER = ("--microbatch-rows", "40")
SHARED = ("--rto.critic.kind", "shared", "--rto.average", "token", "--rto.correction.kind", "tis")
CASES: dict[int, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    2: {
        "supervised": (("dpo", "rm"), ()),
        "family": (("rto", "grpo"), SMALLER),
        "again": (("rto", "grpo"), SMALLER),
        "shared critic": (("rto",), SHARED),
    },
    4: {
        "supervised": (("dpo", "rm"), SMALLER),
        "family": (("rto", "grpo"), ()),
        "adapters": (("dpo", "rm", "rto"), ("--adapter.rank", "4")),
        "whole": (("sft", "dpo", "rm", "rto"), ("--sweep.ratios", "1", "--sweep.clips", "0.1")),
    },
}
"""Ranks: names: stages, settings."""
SCORED = ("reward/", "kl/", "answers/", "values/")


def command(folder: Path, output: str, stages: tuple[str, ...], more: tuple[str, ...]) -> list[str]:
    """Stages on models from one process, so that their own difference is seen; with adapters on that base."""
    made = ["sft"] if "--adapter.rank" in more else [x for x in ("sft", "dpo", "rm") if x not in stages]
    models = [word for stage in made for word in (f"--{stage}.model", str(folder / "first" / stage))]
    evaluated = () if "sft" in stages else ("--eval.prompts", "0")
    return words(folder, output, "--stages", *stages, *PAID, *evaluated, *models, *more)


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_train_what_one_process_trains(tmp_path, ranks):
    setting(tmp_path)
    torch.set_num_threads(1)
    assert main(words(tmp_path, "first", "--stages", "sft", "dpo", "rm", "--eval.prompts", "0")) == 0
    for name, (stages, more) in CASES[ranks].items():
        assert main(command(tmp_path, f"{name} alone", stages, more)) == 0
    said = train(ranks, *(command(tmp_path, name, stages, more) for name, (stages, more) in CASES[ranks].items()))
    assert said.count("Finished in") == len(CASES[ranks])  # one rank speaks
    for name, (stages, _) in CASES[ranks].items():
        alone, together = tmp_path / f"{name} alone", tmp_path / name
        # one process writes, what one process would
        left = [
            sorted(str(p.relative_to(x)) for p in x.rglob("*") if "tfevents" not in p.name) for x in (alone, together)
        ]
        assert left[0] == left[1]
        # elsewhere the models that pay have been trained apart, to their last digits
        given = name in ("family", "again", "shared critic")
        for stage in stages:
            theirs, ours = steps(alone, stage), steps(together, stage)
            assert theirs and [sorted(x) for x in theirs] == [sorted(x) for x in ours]
            for a, b in zip(theirs, ours, strict=True):
                assert b == {k: pytest.approx(x, rel=2e-3, abs=1e-4) for k, x in a.items()}, (name, stage)
            if given:
                scored = [k for k in theirs[0] if k.startswith(SCORED)]
                assert len(scored) > 10 and {k: ours[0][k] for k in scored} == {k: theirs[0][k] for k in scored}
            near = 1e-6 if given or stage in ("sft", "dpo", "rm") else 2e-5
            assert distance(alone / stage, together / stage) < near, (name, stage)
    if "again" in CASES[ranks]:
        for stage in ("rto", "grpo"):
            assert same_bits(tmp_path / "family" / stage, tmp_path / "again" / stage)
            assert steps(tmp_path / "family", stage) == steps(tmp_path / "again", stage)
