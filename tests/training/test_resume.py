"""A run that is killed, stopped or refused disk space loses nothing: it goes on and ends with the same bits."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rto_fast.config import CheckpointConfig
from rto_fast.train import main
from rto_fast.training import checkpoint, metrics
from rto_fast.training.checkpoint import Checkpoints
from tests.kill_harness import arguments, end_state, setting

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    setting(folder)
    assert main(arguments(folder, "whole")) == 0
    return folder


class Killed(BaseException):
    """Nothing catches it, and nothing is saved on its way."""


def killed_at(monkeypatch, stage: str, step: int, words: list[str]) -> None:
    """Run until the line of this step is logged; its checkpoint is never made."""
    original = metrics.StageLog.__call__

    def log(self, at, numbers):
        original(self, at, numbers)
        if (self.stage, at) == (stage, step):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(metrics.StageLog, "__call__", log)
        with pytest.raises(Killed):
            main(words)


@pytest.mark.parametrize("every", ["1", "3"])
@pytest.mark.parametrize("stage, step", [("sft", 2), ("dpo", 2), *(("rto", step) for step in (1, 2, 3, 4, 5, 8))])
def test_killed_anywhere_a_run_ends_with_the_same_bits(folder, monkeypatch, capsys, stage, step, every):
    shutil.rmtree(folder / "again", ignore_errors=True)
    words = arguments(folder, "again", "--checkpoint.every", every)
    killed_at(monkeypatch, stage, step, words)
    capsys.readouterr()
    assert main(words) == 0
    done = (step - 1) // int(every) * int(every)
    assert (f"{stage}: going on from step {done} " in capsys.readouterr().out) == (done > 0)
    assert end_state(folder / "again") == end_state(folder / "whole")


def test_several_deaths_of_one_run(folder, monkeypatch):
    shutil.rmtree(folder / "again", ignore_errors=True)
    words = arguments(folder, "again")
    for stage, step in (("sft", 1), ("dpo", 2), ("rto", 2), ("rto", 3), ("rto", 7)):
        killed_at(monkeypatch, stage, step, words)
    assert main(words) == 0
    assert end_state(folder / "again") == end_state(folder / "whole")


def test_death_between_a_stages_end_and_its_clean_up(folder, monkeypatch):
    shutil.rmtree(folder / "again", ignore_errors=True)

    def forget(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "forget", forget)
        with pytest.raises(Killed):
            main(arguments(folder, "again"))
    assert (folder / "again" / "sft.checkpoints").exists()
    assert main(arguments(folder, "again")) == 0
    assert end_state(folder / "again") == end_state(folder / "whole")


@pytest.mark.parametrize(
    "options",
    [
        ("--rto.critic.kind", "shared"),
        ("--rto.stop-kl", "1e-9", "--rto.ppo-epochs", "3"),
        ("--rto.reward.adaptive-kl-target", "0.01", "--rto.reward.truncated", "mask"),
        ("--rto.critic.kind", "group", "--rto.group", "4", "--rto.reward.adaptive-kl-target", "0.01"),
        ("--rto.critic.warmup-iterations", "1", "--log-every", "3"),
        ("--sft.epochs", "2", "--dpo.epochs", "2", "--microbatch-rows", "40"),
    ],
    ids=lambda options: " ".join(options),
)
def test_whatever_changes_is_saved(folder, monkeypatch, options):
    for name in ("a", "b"):
        shutil.rmtree(folder / name, ignore_errors=True)
    assert main(arguments(folder, "a", *options)) == 0
    for stage, step in (("sft", 2), ("dpo", 2), ("rto", 3)):
        killed_at(monkeypatch, stage, step, arguments(folder, "b", *options))
    assert main(arguments(folder, "b", *options)) == 0
    assert end_state(folder / "a") == end_state(folder / "b")


def test_a_stage_can_start_over(folder, monkeypatch, capsys):
    shutil.rmtree(folder / "again", ignore_errors=True)
    killed_at(monkeypatch, "rto", 5, arguments(folder, "again"))
    capsys.readouterr()
    assert main(arguments(folder, "again", "--resume", "False")) == 0
    assert "going on" not in capsys.readouterr().out
    assert end_state(folder / "again") == end_state(folder / "whole")


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "outside"])
def test_a_damaged_checkpoint_is_passed_over(folder, monkeypatch, capsys, damage):
    shutil.rmtree(folder / "again", ignore_errors=True)
    killed_at(monkeypatch, "rto", 5, arguments(folder, "again"))
    newest = folder / "again" / "rto.checkpoints" / "step-00000004"
    file = newest / "weights.safetensors"
    if damage == "cut":
        os.truncate(file, 1000)
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text('{"weights.safetensors": ')
    else:
        (newest / "manifest.json").write_text(json.dumps({"../../../pairs.jsonl": "0"}))
    capsys.readouterr()
    assert main(arguments(folder, "again")) == 0
    said = capsys.readouterr().out
    assert f"rto: passing over a damaged checkpoint, {newest}: " in said and "rto: going on from step 3 " in said
    assert end_state(folder / "again") == end_state(folder / "whole")


def test_a_full_disk_keeps_the_checkpoint_before(folder, monkeypatch, capsys):
    """Files may not grow beyond 20 kB from the third step of RTO on: its next checkpoint cannot be written."""
    shutil.rmtree(folder / "again", ignore_errors=True)
    original, before = metrics.StageLog.__call__, resource.getrlimit(resource.RLIMIT_FSIZE)

    def log(self, at, numbers):
        original(self, at, numbers)
        if (self.stage, at) == ("rto", 3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    monkeypatch.setattr(metrics.StageLog, "__call__", log)
    try:
        code = main(arguments(folder, "again"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("rto_fast: error: checkpoint: ") and "could not be written" in error
    monkeypatch.undo()
    kept = sorted(path.name for path in (folder / "again" / "rto.checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]
    assert main(arguments(folder, "again")) == 0
    assert "rto: going on from step 2 " in capsys.readouterr().out
    assert end_state(folder / "again") == end_state(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_go_on_and_ends_well(folder, number, capsys):
    run = folder / "signalled"
    shutil.rmtree(run, ignore_errors=True)
    # no checkpoint but the one that the signal asks for, and enough steps for it to come in time
    words = arguments(folder, "signalled", "--checkpoint.every", "0", "--rto.iterations", "60")
    child = subprocess.Popen(
        [sys.executable, "-m", "rto_fast.train", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while '"stage": "rto"' not in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else True:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert f"{number.name}: finishing this step and saving" in said
    assert f"Stopped and saved in {run}; the same command goes on from here." in said
    (checkpoint,) = (run / "rto.checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 0 < step < 240
    capsys.readouterr()
    assert main(words) == 0
    assert f"rto: going on from step {step} " in capsys.readouterr().out


def test_kill_minus_nine_at_random_moments(tmp_path):
    script = Path(__file__).parents[1] / "kill_harness.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(tmp_path), "4", "7"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 end states equal bit for bit" in done.stdout and " 0 kills" not in done.stdout


def test_checkpoints_are_due_by_steps_and_by_time(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    by_steps, by_time, never = (
        Checkpoints(tmp_path / str(i), CheckpointConfig(every, minutes))
        for i, (every, minutes) in enumerate([(5, 0.0), (0, 2.0), (0, 0.0)])
    )
    assert [by_steps.due(step) for step in (0, 4, 5, 9)] == [False, False, True, True]
    by_steps.save(5, {"weights": {"0": torch.ones(3)}, "optimizer": {}, "stage": {}}, {"progress": {}})
    assert [by_steps.due(step) for step in (5, 9, 10)] == [False, False, True]
    assert not by_time.due(100)
    now = 119.0
    assert not by_time.due(100) and not never.due(10**9)
    now = 120.0
    assert by_time.due(1) and not never.due(10**9)


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2))
    for step in (1, 2, 3, 10):
        checkpoints.save(step, {"weights": {"0": torch.full((2,), step)}}, {"progress": {"x": step / 3}})
    checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    saved = checkpoints.newest()
    assert saved.step == 10 and saved.facts == {"progress": {"x": 10 / 3}} and saved.parts["weights"]["0"][0] == 10


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_are_asked_for(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=keep))
    for step in range(1, 6):
        checkpoints.save(step, {"weights": {"0": torch.zeros(2)}}, {"progress": {}})
    checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08}" for step in range(6 - keep, 6)]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    weight, started, go = torch.zeros(1000), threading.Event(), threading.Event()
    original = Checkpoints._write

    def slowly(self, *what):
        started.set()
        assert go.wait(10)
        original(self, *what)

    monkeypatch.setattr(Checkpoints, "_write", slowly)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"weights": {"0": weight}}, {"progress": {}})
    assert started.wait(10) and not list(tmp_path.glob("step-*"))
    weight += 1  # the optimizer's next step
    go.set()
    checkpoints.wait()
    assert checkpoints.newest().parts["weights"]["0"].abs().max() == 0


def test_a_checkpoint_that_could_not_be_written_is_told_before_the_next(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "folder", CheckpointConfig())
    checkpoints.save(1, {"weights": {"0": torch.zeros(2)}}, {"progress": {}})
    with pytest.raises(OSError, match="checkpoint: .* could not be written"):
        checkpoints.save(2, {"weights": {"0": torch.zeros(2)}}, {"progress": {}})


def test_a_state_too_large_to_copy_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: 10_000)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"weights": {"0": torch.zeros(2000)}}, {"progress": {}})
    assert checkpoints.pending is None and (tmp_path / "step-00000001").is_dir()


def test_a_checkpoint_of_another_model_is_named(folder, monkeypatch):
    from rto_fast.config import OptimConfig
    from rto_fast.training import loop

    small, large = torch.nn.Linear(3, 3), torch.nn.Linear(3, 4)
    states = [loop.make_state(OptimConfig(), {"policy": m}) for m in (small, large)]
    with pytest.raises(
        ValueError, match="checkpoint: its weights are those of another model; start over with --resume"
    ):
        states[1].restore(3, *states[0].save())
