"""What may go wrong while a run is alone: it stops, or goes on, with the weights of the last good step."""

import copy
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rto_fast.config import Config, GuardConfig, SFTConfig
from rto_fast.pipeline import run as pipeline
from rto_fast.pipeline.memory import explained
from rto_fast.stages.sft import SFT
from rto_fast.train import main
from rto_fast.training import loop
from rto_fast.training.guards import BadStep, StepGuard, dump
from tests.kill_harness import arguments, setting
from tests.stages.test_stages import CONFIG, LIMITS, demonstrations, fresh, make_rto, run
from tests.tiny import language_model

ROOT = Path(__file__).parents[2]


def sft_with(factors: list[float], guards: GuardConfig, log_every: int = 1):
    """An SFT run of one step per factor of its loss: the model, its weights after each step, the logs, train()."""
    model = language_model("llama")
    state = fresh(model)
    stage = SFT(model, demonstrations(), SFTConfig(batch_size=8, epochs=len(factors)), state, **LIMITS)
    plain, seen, logs = stage.losses, [], []
    stage.losses = lambda *given: ((loss * factors[state.step], {}) for loss, _ in plain(*given))
    snapshot = lambda s: seen.append(copy.deepcopy(list(model.parameters())))  # noqa: E731
    record = lambda step, metrics: logs.append(metrics)  # noqa: E731
    return model, seen, logs, lambda: loop.train(stage, state, record, log_every, None, snapshot, guards)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_step_is_taken_from_the_first_bad_one_on_however_rarely_the_host_looks(bad):
    model, seen, logs, train = sft_with([1, 1, bad, 1, 1, 1, 1, 1], GuardConfig(), log_every=4)
    with pytest.raises(BadStep, match=r"step 3: the gradient is not finite .*; the weights were left") as caught:
        train()
    assert same(seen[1], model.parameters()) and not same(seen[0], seen[1])
    assert len(caught.value.batches) == 4 and logs == []


def test_a_state_behind_a_bad_step_is_never_saved():
    model = language_model("llama")
    state = fresh(model)
    stage = SFT(model, demonstrations(), SFTConfig(batch_size=8, epochs=4), state, **LIMITS)
    plain = stage.losses
    stage.losses = lambda *given: ((loss * math.nan, {}) for loss, _ in plain(*given))
    with pytest.raises(BadStep, match="step 1"):
        loop.train(stage, state, lambda *_: None, 100, None, lambda s: s.save())


def test_large_gradients_are_skipped_taken_or_stop_the_run():
    factors = [1.0, 1000.0, 1.0]
    model, seen, logs, train = sft_with(factors, GuardConfig(grad_norm=50.0))
    train()
    assert same(seen[0], seen[1]) and not same(seen[1], seen[2])
    assert logs[1]["guard/grad_norm"] > 50 and "guard/grad_norm" not in logs[2]
    model, seen, logs, train = sft_with(factors, GuardConfig(grad_norm=50.0, grad_norm_action="warn"))
    train()
    assert not same(seen[0], seen[1]) and logs[1]["guard/grad_norm"] > 50
    model, seen, logs, train = sft_with(factors, GuardConfig(grad_norm=50.0, grad_norm_action="stop"))
    with pytest.raises(FloatingPointError, match="guards.grad_norm: a gradient norm of .* is above 50"):
        train()
    assert same(seen[0], model.parameters())


def test_without_a_limit_guards_change_no_bit():
    plain, guarded = (sft_with([1.0] * 4, guards) for guards in (GuardConfig(), GuardConfig(grad_norm=1e9)))
    plain[3](), guarded[3]()
    assert same(plain[0].parameters(), guarded[0].parameters())


def test_a_policy_that_drifts_stops_or_is_not_trained_on():
    stage, state = make_rto(CONFIG, guards=GuardConfig(kl=1e-3))
    with pytest.raises(FloatingPointError, match="guards.kl: the policy is .* nats per answer from pi_ref, above"):
        run(stage, state)
    assert state.progress["iteration"] == 1  # the first rollout is pi_ref's own
    logs = []
    stage, state = make_rto(replace(CONFIG, iterations=3), guards=GuardConfig(kl=1e-3, kl_action="warn"))
    run(stage, state, logs)
    assert [i for i, m in enumerate(logs) if "guard/kl" in m] == [4, 8]
    stage, state = make_rto(replace(CONFIG, iterations=3), guards=GuardConfig(kl=1e-3, kl_action="skip"))
    logs = []
    run(stage, state, logs)
    assert len(logs) == 4 and state.progress["iteration"] == 3


def test_a_bad_batch_is_written_down_with_its_names(tmp_path):
    model = language_model("llama")
    stage = SFT(model, demonstrations(), SFTConfig(batch_size=8), fresh(model), **LIMITS)
    step = next(iter(stage.steps()))
    assert "bad.safetensors" in dump(tmp_path / "bad", step.batches)
    tensors = load_file(tmp_path / "bad.safetensors")
    assert torch.equal(tensors["0.packed.input_ids"], step.batches[0].packed.input_ids)
    assert torch.equal(tensors["0.packed.response_rows"], step.batches[0].packed.response_rows)
    assert "could not be written" in dump(tmp_path / "nowhere" / "bad", step.batches)


def test_a_run_names_the_stage_the_step_and_the_batch(tmp_path, monkeypatch, capsys):
    setting(tmp_path)
    original = pipeline.build

    def broken(context, stage):
        built = original(context, stage)
        if stage == "dpo":
            plain = built.stage.losses
            built.stage.losses = lambda *given: ((loss * math.nan, {}) for loss, _ in plain(*given))
        return built

    monkeypatch.setattr(pipeline, "build", broken)
    assert main(arguments(tmp_path, "run")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "dpo: step 1: the gradient is not finite" in error and "dpo.bad-step.safetensors" in error
    assert (tmp_path / "run" / "dpo.bad-step.safetensors").is_file()
    monkeypatch.undo()
    assert main(arguments(tmp_path, "run")) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_budgets(error):
    with pytest.raises(ValueError, match=r"dpo: out of host memory. Lower --microbatch-rows \(now 16384"):
        with explained("dpo", Config()):
            raise error
    with pytest.raises(RuntimeError, match="shape mismatch"):
        with explained("dpo", Config()):
            raise RuntimeError("shape mismatch")


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(ValueError, match="sft: out of host memory"):
        with explained("sft", Config()):
            torch.empty(2**60, dtype=torch.uint8)


STALLED = """
import time
from rto_fast.training.stall import StallGuard
with StallGuard(0.02, "rto") as stall:
    stall.alive("256/256 answers")
    time.sleep(30)
print("never")
"""


def test_a_run_in_which_nothing_moves_ends_with_a_sentence():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STALLED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and time.monotonic() - started < 25 and done.stdout == ""
    assert "guards.stall_minutes: rto has done nothing for" in done.stderr and "(256/256 answers)" in done.stderr


HANGS = """
import sys, time
from {module} import {name}
import {module} as module
def hang(*_, **__):
    time.sleep(60)
module.{name} = hang
from rto_fast.train import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "module, name, says",
    [
        ("rto_fast.pipeline.prepare", "load_corpus", "reading the data has done nothing for"),
        ("rto_fast.rl.collect", "rollout", "rto has done nothing for"),
        ("rto_fast.pipeline.measure", "evaluate", "evaluation has done nothing for"),
    ],
)
def test_whatever_hangs_is_named(tmp_path, module, name, says):
    setting(tmp_path)
    script = HANGS.format(module=module, name=name)
    words = arguments(tmp_path, "run", "--guards.stall-minutes", "0.08")
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 3 and f"guards.stall_minutes: {says}" in done.stderr


def test_guards_are_in_the_runs_metrics(tmp_path):
    setting(tmp_path)
    assert main(arguments(tmp_path, "run", "--guards.grad-norm", "1e-6", "--guards.grad-norm-action", "warn")) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert all(line["guard/grad_norm"] > 1e-6 and line["memory/peak_mb"] > 0 for line in lines)


def test_a_loss_that_is_not_finite_is_refused_whatever_its_gradient():
    guard = StepGuard(GuardConfig(), torch.device("cpu"))
    assert float(guard.refuse(1, [], torch.tensor(1.0), [torch.tensor(2.0)])) == 0
    assert float(guard.refuse(2, [], torch.tensor(math.nan), [torch.tensor(2.0)])) != 0
    with pytest.raises(BadStep, match="step 2"):
        guard.report(math.nan)


def test_the_largest_norm_since_the_last_report_is_told():
    guard = StepGuard(GuardConfig(grad_norm=1.0, grad_norm_action="warn"), torch.device("cpu"))
    for step, norm in enumerate((0.5, 7.0, 0.5), 1):
        guard.refuse(step, [], torch.tensor(1.0), [torch.tensor(norm)])
    assert guard.report(1.0) == {"guard/grad_norm": 7.0}
    assert guard.report(1.0) == {}
