"""The best checkpoint by a metric: kept beside the newest, exported beside the stage's end, the same after a kill."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rto_fast.config import CheckpointConfig
from rto_fast.pipeline import run as pipeline
from rto_fast.train import main
from rto_fast.training.checkpoint import Checkpoints
from tests.kill_harness import arguments, end_state, setting
from tests.training.test_resume import Killed, killed_at

METRIC = "logp_rejected"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    setting(folder)
    assert main(words(folder, "whole")) == 0
    return folder


def words(folder: Path, output: str, metric: str = METRIC) -> list[str]:
    best = ["--checkpoint.best", metric, "--checkpoint.best-is", "smallest", "--checkpoint.keep", "1"]
    return arguments(folder, output, *best, "--dpo.epochs", "3")


def digest(run: Path) -> str:
    return hashlib.sha256((run / "dpo_best" / "model.safetensors").read_bytes()).hexdigest()


def values(run: Path) -> dict[int, float]:
    """The metric at each step of DPO, by the number of steps made before it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"] - 1: entry[METRIC] for entry in lines if entry["stage"] == "dpo"}


def write(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, {"weights": {"0": torch.tensor([float(step)])}}, {"progress": {}})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_the_best_is_kept_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep=1, best="score")) as checkpoints:
        for step, value in ((1, 0.5), (2, 2.0), (3, 1.0), (4, float("nan")), (5, 2.0)):
            write(checkpoints, step)
            checkpoints.report({"loss": 9.0})
            checkpoints.report({"score": value})
            checkpoints.report({"score": 99.0})  # of a later state, whose checkpoint was never made
    assert steps(tmp_path) == [2, 5]
    assert (checkpoints.best.found.step, checkpoints.best.found.value) == (2, 2.0)
    assert checkpoints.read(2).parts["weights"]["0"].item() == 2.0


def test_the_smallest_is_the_best_where_asked_for(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep=1, best="loss", best_is="smallest")) as checkpoints:
        for step, value in ((1, 0.5), (2, 0.25), (3, 1.0)):
            write(checkpoints, step)
            checkpoints.report({"loss": value})
    assert steps(tmp_path) == [2, 3] and checkpoints.best.found.step == 2


@pytest.mark.parametrize(
    "damage", ["[]", "{", '{"metric": "loss", "step": 1, "value": NaN}', '{"metric": "other"}', ""]
)
def test_a_damaged_note_of_the_best_is_as_good_as_none(tmp_path, damage):
    (tmp_path / "best.json").write_text(damage)
    assert Checkpoints(tmp_path, CheckpointConfig(best="loss")).best.found is None


def test_a_best_of_a_lost_future_is_forgotten(tmp_path):
    config = CheckpointConfig(keep=2, best="score")
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in (1, 2):
            write(checkpoints, step)
            checkpoints.report({"score": float(step)})
    (tmp_path / "step-00000002" / "manifest.json").write_text("{}")
    again = Checkpoints(tmp_path, config)
    assert again.newest().step == 1 and again.best.found is None


def test_the_export_is_the_state_that_was_measured(folder):
    measured = values(folder / "whole")
    assert len(measured) == 7
    best = min(list(measured)[1:], key=measured.get)  # before the first step there is no checkpoint
    assert 1 < best < 6
    facts = json.loads((folder / "whole" / "dpo_best" / "stage.json").read_text())
    assert (facts["metric"], facts["step"], facts["value"]) == (METRIC, best, measured[best])
    # a run that is lost there holds the same weights
    shutil.rmtree(folder / "short", ignore_errors=True)

    def stop(self, step, parts, facts, save=Checkpoints.save):
        save(self, step, parts, facts)
        if self.folder.name == "dpo.checkpoints" and step == best:
            self.wait()
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", stop)
        main(words(folder, "short"))
    saved = load_file(folder / "short" / "dpo.checkpoints" / f"step-{best:08}" / "weights.safetensors")
    exported = dict(AutoModelForCausalLM.from_pretrained(folder / "whole" / "dpo_best").named_parameters())
    assert sorted(x.double().sum().item() for x in saved.values()) == sorted(
        x.double().sum().item() for x in exported.values()
    )


def test_the_stages_own_end_is_what_it_is_without(folder):
    assert main(arguments(folder, "without", "--dpo.epochs", "3")) == 0
    assert end_state(folder / "without") == end_state(folder / "whole")
    assert not list((folder / "without").glob("*_best"))


@pytest.mark.parametrize("step", [2, 3, 5, 6])
def test_after_a_kill_the_best_is_the_same(folder, monkeypatch, step):
    shutil.rmtree(folder / "again", ignore_errors=True)
    killed_at(monkeypatch, "dpo", step, words(folder, "again"))
    assert main(words(folder, "again")) == 0
    assert digest(folder / "again") == digest(folder / "whole")
    assert end_state(folder / "again") == end_state(folder / "whole")


@pytest.mark.parametrize("name", ["dpo_best", "dpo"])
def test_a_kill_around_the_two_exports_costs_neither(folder, monkeypatch, name):
    shutil.rmtree(folder / "again", ignore_errors=True)
    original = pipeline.save_stage

    def save_stage(path, *rest):
        original(path, *rest)
        if path.name == name:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pipeline, "save_stage", save_stage)
        main(words(folder, "again"))
    assert main(words(folder, "again")) == 0
    assert digest(folder / "again") == digest(folder / "whole")
    assert end_state(folder / "again") == end_state(folder / "whole")


def test_a_damaged_end_is_an_error_and_no_earlier_checkpoint_takes_its_place(folder, monkeypatch, capsys):
    """The stage's end is read back after the best was exported; a bit that fell in between is found."""
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    original = pipeline.save_stage

    def save_stage(path, *rest):
        original(path, *rest)
        if path.name == "dpo_best":
            newest = folder / "damaged" / "dpo.checkpoints" / "step-00000007" / "weights.safetensors"
            data = bytearray(newest.read_bytes())
            data[-3] ^= 1
            newest.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "save_stage", save_stage)
        assert main(words(folder, "damaged")) == 2
    error = capsys.readouterr().err
    assert "damaged" in error and "--checkpoint.best None" in error
    assert not (folder / "damaged" / "dpo").exists()
    assert main(arguments(folder, "damaged", "--dpo.epochs", "3", "--checkpoint.keep", "1")) == 0
    assert end_state(folder / "damaged") == end_state(folder / "whole")


def test_a_metric_that_nobody_reports_is_named(folder, capsys):
    assert main(words(folder, "typo", "acuracy")) == 0
    assert "dpo: no checkpoint has a value of acuracy, so none is the best" in capsys.readouterr().out
    assert not list((folder / "typo").glob("*_best"))


def test_an_empty_name_is_refused(folder, capsys):
    assert main([*arguments(folder, "empty"), "--checkpoint.best", ""]) == 2
    assert "checkpoint.best" in capsys.readouterr().err
