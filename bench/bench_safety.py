"""What it costs that nothing is lost: checkpoints every ten steps, guards at every step, the checks before a run.

    python -m pytest bench/bench_safety.py -s

The quickstart's model and data, SFT steps of its recipe (the shortest steps of the three stages, where a fixed cost
weighs most). Runs with and without are made in turn, from the same weights; both must end with the same bits before
their times are compared.
"""

import statistics
import time
from pathlib import Path

import pytest
import torch

from bench.machine import describe
from bench.record import beside
from rto_fast.config import CheckpointConfig, GuardConfig
from rto_fast.config.recipe import load_recipe
from rto_fast.pipeline.preflight import preflight
from rto_fast.pipeline.prepare import prepare
from rto_fast.stages.sft import SFT
from rto_fast.training import loop
from rto_fast.training.checkpoint import Checkpoints
from rto_fast.training.guards import StepGuard

STEPS = 60
ROUNDS = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from dataclasses import replace

    place = tmp_path_factory.mktemp("safety")
    return prepare(replace(load_recipe("quickstart"), output=str(place / "run")), lambda text: None, place)


def train(run, folder: Path | None) -> list[torch.Tensor]:
    """STEPS steps of SFT, saved every ten to `folder`; the weights they end with."""
    context, _ = run
    model = context.load(context.config.model.path)
    config = context.config.sft
    state = loop.make_state(config.optim, {"policy": model})
    stage = SFT(model, context.corpus.demonstrations, config, state, **context.stage_options)
    stage.num_steps = STEPS
    checkpoints = Checkpoints(folder or Path("never"), CheckpointConfig(every=10 if folder else 0, minutes=0))

    def after_step(state: loop.TrainState) -> None:
        if checkpoints.due(state.step):
            checkpoints.save(state.step, *state.save())

    with checkpoints:
        loop.train(stage, state, lambda *_: None, 1, context.autocast, after_step)
    return [p.detach() for p in model.parameters()]


def test_checkpoints_every_ten_steps(benchmark, run, tmp_path):
    saved, plain = train(run, tmp_path), train(run, None)
    assert all(torch.equal(a, b) for a, b in zip(saved, plain, strict=True))
    assert len(list(tmp_path.glob("step-*"))) == 2
    ratio = beside(
        benchmark,
        lambda: train(run, tmp_path),
        lambda: train(run, None),
        rival="rto_fast",
        shape=f"quickstart SFT, {STEPS} steps, a checkpoint every 10",
        of="the same without checkpoints",
        rounds=ROUNDS,
        memory=False,
    )
    print(f"\ncheckpoints every 10 steps: {ratio:.3f} x the time without them ({describe()['processor']})")


def test_guards_at_every_step(benchmark, run):
    """The guard's own calls, against a step of the quickstart."""
    context, model = run
    guard = StepGuard(GuardConfig(grad_norm=1e9), context.device)
    loss, norms = torch.tensor(1.0, device=context.device), [torch.tensor(2.0, device=context.device)]

    def guarded() -> None:
        guard.refuse(1, [], loss, norms)
        guard.report(1.0)

    started = time.perf_counter()
    train(run, None)
    step = (time.perf_counter() - started) / STEPS
    benchmark.pedantic(guarded, rounds=200, warmup_rounds=20)
    cost = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info.update(
        dict(
            describe(),
            rival="rto_fast",
            shape="quickstart SFT, guards of one step",
            device=str(context.device),
            ms=1e3 * cost,
            of="a step",
            ratio=cost / step,
        )
    )
    print(f"\nguards: {1e6 * cost:.0f} us, {100 * cost / step:.2f} % of a step of {1e3 * step:.0f} ms")


def test_preflight(benchmark, run):
    context, model = run
    _, checks = benchmark.pedantic(lambda: preflight(context, model), rounds=3, warmup_rounds=1)
    assert len(checks) >= 7
    seconds = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info.update(
        dict(describe(), rival="rto_fast", shape="quickstart, all checks", device=str(context.device), ms=1e3 * seconds)
    )
    print(f"\npreflight: {seconds:.2f} s")
    assert seconds < 10
