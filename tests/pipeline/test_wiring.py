"""Settings that reach what they are about, outside of the stages' own arithmetic (tests/derivation)."""

import contextlib
import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rto_fast.config import (
    CompareConfig,
    Config,
    DataConfig,
    DPOConfig,
    EvalConfig,
    GuardConfig,
    ModelConfig,
    RewardConfig,
    RTOConfig,
    SamplingConfig,
    SFTConfig,
    SweepConfig,
)
from rto_fast.pipeline import compare, measure, prepare
from rto_fast.pipeline import run as pipeline
from rto_fast.runs.open import Context
from rto_fast.stages.rto import RTO
from rto_fast.training import loop
from tests.tiny import language_model
from tests.tiny_run import write_model, write_pairs


class Seen(BaseException):
    """Ends a run where enough was seen; nothing catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wiring")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


def config_of(folder, **changes) -> Config:
    data = DataConfig(path=str(folder / "pairs.jsonl"), template="none", max_prompt=10, max_length=24, held_out=4)
    base = Config(recipe="tiny", output=str(folder / "run"), data=data, model=ModelConfig(path=str(folder / "model")))
    return dataclasses.replace(base, **changes)


def context_of(folder, **changes) -> Context:
    return prepare.prepare(config_of(folder, **changes), lambda text: None, folder / "scratch")[0]


def test_a_models_settings_are_how_it_is_loaded(folder):
    path = str(folder / "model")
    context = context_of(folder, model=ModelConfig(path=path, dtype="bfloat16", gradient_checkpointing=True))
    model = context.load(path)
    assert context.dtype == torch.bfloat16 and model.hf.is_gradient_checkpointing
    assert not context_of(folder).load(path).hf.is_gradient_checkpointing


def test_budgets_and_the_seed_are_every_stages(folder):
    context = context_of(folder, microbatch_rows=77, workspace_mb=5, seed=3)
    assert context.stage_options == dict(seed=3, device=torch.device("cpu"), microbatch_rows=77, workspace_mb=5)


def test_a_token_beyond_the_embeddings_is_refused():
    model = language_model("llama", vocab_size=61)
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda i: f"<{i}>")
    prepare._check_ids(SimpleNamespace(largest_id=60), tokenizer, model)
    with pytest.raises(ValueError, match="the tokenizer writes id 61, '<61>'"):
        prepare._check_ids(SimpleNamespace(largest_id=61), tokenizer, model)


def test_what_does_not_fit_the_models_context_is_refused():
    model = language_model("llama")  # a context of 128
    fits = Config(data=DataConfig(path="x", max_prompt=100, max_length=128))
    prepare._check_context(fits, model)
    for longer in (
        dataclasses.replace(fits, data=DataConfig(path="x", max_prompt=100, max_length=129)),
        dataclasses.replace(fits, rto=RTOConfig(sampling=SamplingConfig(max_new_tokens=29))),
    ):
        with pytest.raises(ValueError, match="prompt and answer may take 129 tokens, but the model's context is 128"):
            prepare._check_context(longer, model)


def test_guards_and_the_log_reach_the_loop_and_the_stage(folder, monkeypatch):
    seen = {}

    def train(stage, state, log, log_every, autocast, after_step, guards):
        seen.update(log_every=log_every, guards=guards, optim=state.optim)
        if isinstance(stage, RTO):
            raise Seen(stage)
        raise Seen

    monkeypatch.setattr(loop, "train", train)
    guards = GuardConfig(grad_norm=7.0, kl=3.0)
    with pytest.raises(Seen):
        pipeline.run(config_of(folder, log_every=5, guards=guards, stages=("sft",)), lambda text: None)
    assert seen["log_every"] == 5 and seen["guards"] == guards and seen["optim"] == Config().sft.optim
    reward = RTOConfig(reward=RewardConfig(beta_1=0.0))
    with pytest.raises(Seen) as ended:
        changes = dict(guards=guards, stages=("rto",), rto=reward, output=str(folder / "rl"))
        pipeline.run(config_of(folder, **changes), lambda text: None)
    assert ended.value.args[0].collector.guards == guards


def test_the_model_of_the_preflight_is_gone_when_the_first_stage_is_built(folder, monkeypatch):
    seen: list[weakref.ref] = []

    def checked(context, model, began):
        seen.extend(map(weakref.ref, (model, model.hf, *model.parameters())))
        return preflight(context, model, began)

    def build(context, stage):
        assert len(seen) > 10 and not any(ref() is not None for ref in seen)
        raise Seen

    preflight = pipeline.preflight
    monkeypatch.setattr(pipeline, "preflight", checked)
    monkeypatch.setattr(pipeline, "build", build)
    with pytest.raises(Seen):
        pipeline.run(config_of(folder, output=str(folder / "gone")), lambda text: None)


def test_autocast_ends_with_every_policy_that_is_measured(folder, monkeypatch):
    """Its cache holds a copy of every weight that it has cast, until it ends."""
    path, seen = str(folder / "model"), []
    given = dict(sft=SFTConfig(model=path), dpo=DPOConfig(model=path), output=str(folder / "measured"))
    context = dataclasses.replace(context_of(folder, stages=("sft", "rto"), **given), autocast=torch.bfloat16)

    def evaluated(policy, **settings):
        assert torch.is_autocast_enabled("cpu")
        seen.append("measured")
        if seen.count("measured") == 2:
            raise Seen

    def loaded(self, *words, **place):
        seen.append(torch.is_autocast_enabled("cpu"))
        return load(self, path)

    load = Context.load
    monkeypatch.setattr(Context, "load", loaded)
    monkeypatch.setattr(measure, "evaluate", evaluated)
    with pytest.raises(Seen):
        measure.evaluate_run(context, lambda text: None)
    assert seen == [False, False, "measured", False, "measured"]


def test_an_evaluation_is_made_with_its_own_settings(folder, monkeypatch):
    seen = {}
    monkeypatch.setattr(measure, "evaluate", lambda policy, **settings: seen.update(settings))
    evaluation = EvalConfig(prompts=3, temperature=0.7, top_p=0.8)
    rto = RTOConfig(sampling=SamplingConfig(max_new_tokens=9))
    config = Config(seed=5, eval=evaluation, microbatch_rows=99, workspace_mb=3, rto=rto)
    context = SimpleNamespace(
        config=config,
        corpus=SimpleNamespace(evaluation=[[i] for i in range(8)]),
        eos_token_ids=(2, 3),
        oracle=None,
        precision=contextlib.nullcontext,
        limits={"microbatch_rows": 99, "workspace_mb": 3},
    )
    measure._measure(context, "policy", "reference", "dpo", None)
    sampling = seen["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.max_new_tokens) == (0.7, None, 0.8, 9)
    assert seen["prompts"] == [[0], [1], [2]] and seen["seed"] == 5 and seen["eos_token_ids"] == (2, 3)
    assert seen["beta"] == config.dpo.beta and seen["batch_size"] == config.rto.sampling.batch_size


def test_a_sweep_goes_over_the_ratio_that_it_names(monkeypatch):
    trained = []
    figures = {"kl": {"mean": 0.0, "ci95": 0.0}, "eos_rate": 1.0}
    monkeypatch.setattr(measure, "_yardsticks", lambda context: (None, None, None))
    monkeypatch.setattr(measure, "_measure", lambda *_: SimpleNamespace(summary=lambda: figures))
    rto = RTOConfig(reward=RewardConfig(beta_1=0.6, beta_2=9.0), iterations=50)
    config = Config(rto=rto, sweep=SweepConfig(ratios=(2.0, 3.0), clips=(0.1, float("inf")), iterations=4))
    context = SimpleNamespace(config=config, precision=lambda: torch.autocast("cpu", enabled=False))
    rows = measure.sweep(context, lambda settings, name: trained.append(settings), lambda text: None)
    assert [(round(s.reward.beta_2, 9), s.reward.clip, s.iterations) for s in trained] == [
        (0.3, 0.1, 4), (0.3, np.inf, 4), (0.2, 0.1, 4), (0.2, np.inf, 4)
    ]  # fmt: skip
    assert [(row["ratio"], row["clip"]) for row in rows] == [(2.0, 0.1), (2.0, None), (3.0, 0.1), (3.0, None)]
    assert all(row["beta_1"] == 0.6 and row["beta_2"] == pytest.approx(0.6 / row["ratio"]) for row in rows)


def test_a_comparison_runs_every_seed_in_its_own_folder(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(compare, "run", lambda config, say, take_from: runs.append(config))

    def summarise(folders):
        raise Seen(folders)

    monkeypatch.setattr(compare, "summarise", summarise)
    whole = Config(output=str(tmp_path / "out"), seed=9, compare=CompareConfig(seeds=(4, 0, 7)))
    with pytest.raises(Seen) as ended:
        compare.compare(whole, lambda text: None)
    assert [c.seed for c in runs] == [4, 0, 7] and not any(c.compare.seeds for c in runs)
    assert [c.output for c in runs] == list(map(str, ended.value.args[0]))
    assert len({c.output for c in runs}) == 3
