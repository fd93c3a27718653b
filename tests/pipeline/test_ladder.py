"""memory = auto: no further than needed, told, and the same on every start."""

import json
from dataclasses import replace

import pytest
import torch

from rto_fast.config import Config
from rto_fast.config.neutral import with_values
from rto_fast.model.load import load_language_model
from rto_fast.pipeline import ladder, preflight
from rto_fast.pipeline import run as pipeline
from rto_fast.pipeline.estimate import Models, needs
from rto_fast.pipeline.facts import arithmetic_on_cuda, models_of
from rto_fast.pipeline.fit import fitting, largest, waiting
from rto_fast.pipeline.footprint import Arithmetic
from tests.pipeline.test_estimate import CUDA, pythia
from tests.pipeline.test_wiring import config_of, context_of
from tests.tiny_run import write_model, write_pairs

GB = 10**9
PLENTY = 10**15


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture(scope="module")
def sizes() -> Models:
    return Models(pythia())


def test_rungs_are_climbed_in_their_order_and_no_further_than_needed(sizes):
    config, climbed = Config(), []
    for memory in (200, 150, 130, 125, 118, 100, 75, 60, 52, 50, 49, 48):
        settings = fitting(config, sizes, CUDA, memory * GB, host=PLENTY)
        if settings is None:
            break
        assert largest(with_values(config, settings), sizes, CUDA) <= memory * GB
        for name in settings:
            if name not in climbed:
                climbed.append(name)
            without = with_values(config, {key: value for key, value in settings.items() if key != name})
            assert largest(without, sizes, CUDA) > memory * GB
    # of 154 GB; a rollout takes 130 with all moments and pi_ref and pi_dpo beside it, 119 without the latter
    assert climbed == [
        *("microbatch_rows", "offload.frozen", "offload.optimizer"),
        *("rto.sampling.batch_size", "model.gradient_checkpointing"),
    ]
    # policy and critic with their gradients, and the casts of the policy's matrices, are what nothing here takes away
    n, body = sizes.policy.parameters, sizes.policy.body
    assert memory == 48 and 48 * GB < 8 * (n + body) + 2 * sizes.policy.matrices + 2 * sizes.policy.head


def test_on_a_cpu_nothing_can_wait_elsewhere_and_the_host_bounds_what_waits(sizes):
    here = [fitting(Config(), sizes, Arithmetic(), memory * GB, host=PLENTY) for memory in range(200, 20, -10)]
    assert not any(name.startswith("offload") for settings in here if settings for name in settings)
    assert any(settings is None for settings in here)
    room = 60 * GB
    settings = fitting(Config(), sizes, CUDA, room, host=PLENTY)
    assert settings and settings["offload.frozen"]
    needed = waiting(with_values(Config(), settings), sizes, CUDA)
    assert fitting(Config(), sizes, CUDA, room, host=needed) == settings
    assert needed > 0 and fitting(Config(), sizes, CUDA, room, host=needed - 1) is None


def test_what_waits_by_hand(sizes):
    n, body = sizes.policy.parameters, sizes.policy.body
    maps = sizes.policy.matrices + sizes.policy.head
    look = 2 * maps + 4 * (n - maps)
    frozen = needs(with_values(Config(), {"offload.frozen": True}), sizes, CUDA)["rto"]
    assert frozen.weights == 4 * (n + body) and frozen.host == 2 * look
    both = needs(with_values(Config(), {"offload.frozen": True, "offload.optimizer": True}), sizes, CUDA)["rto"]
    assert both.host == 2 * look + 8 * (n + body)
    # two moments of the largest tensor, the embedding
    assert both.states == 8 * 50304 * 2560
    assert frozen.peak - both.peak == 8 * (n + body)
    # adapters lie on their base, which is trained on
    tuned = {"offload.frozen": True, "adapter.rank": 16}
    assert needs(with_values(Config(), tuned), sizes, CUDA)["rto"].host == 0
    whole = needs(with_values(Config(), tuned), sizes._replace(dpo_is_adapter=False), CUDA)["rto"]
    assert whole.host == look


def climb(context, memory: int, began=None, said=None):
    return ladder.climb(replace(context, say=(said if said is not None else []).append), memory, began)


def test_a_run_takes_what_fits_and_says_so(folder):
    context, said = context_of(folder), []
    models, how = models_of(context.config), ladder.arithmetic(context)
    peak = largest(context.config, models, how)
    assert climb(context, peak, said=said).config is context.config and not said
    lower = climb(context, peak - 1, said=said).config
    assert lower == with_values(context.config, {"microbatch_rows": 8192})
    assert said[0].startswith("memory: ") and " free, so --microbatch-rows 8192: about " in said[0] and len(said) == 1
    as_set = replace(context, config=replace(context.config, memory="as-set"))
    assert climb(as_set, peak - 1).config is as_set.config
    # where nothing helps the settings stay, and what has no room is refused
    assert climb(context, 1000).config is context.config
    with pytest.raises(ValueError, match="model: weights, gradients and moments of .* need"):
        list(ladder.check_room(context, 1000))


def test_a_run_that_goes_on_keeps_its_micro_batches(folder):
    context = context_of(folder)
    rows = context.config.microbatch_rows
    began = {"made_with": {"microbatch_rows": rows // 4, "asked_rows": rows}}
    said: list[str] = []
    assert climb(context, PLENTY, began, said).config.microbatch_rows == rows // 4
    assert said == [f"memory: going on with --microbatch-rows {rows // 4}, as the run began"]
    for other in (
        {"microbatch_rows": rows // 4},  # an older version's
        {"microbatch_rows": rows // 4, "asked_rows": rows // 4},  # the user asks for more now
        {"microbatch_rows": "many", "asked_rows": rows},
        {"microbatch_rows": -4, "asked_rows": rows},
    ):
        assert climb(context, PLENTY, {"made_with": other}).config is context.config


def test_trained_weights_are_counted_in_float32_whatever_the_arithmetic_is(folder):
    context = context_of(folder)
    half = replace(context, device=torch.device("cuda"), autocast=torch.bfloat16, dtype=torch.bfloat16)
    assert ladder.arithmetic(half) == Arithmetic(4, half=True, cpu=False) == arithmetic_on_cuda(context.config)
    assert ladder.arithmetic(context) == Arithmetic()
    for dtype, is_half in (("bfloat16", True), ("float32", False)):
        config = with_values(context.config, {"model.dtype": dtype})
        assert arithmetic_on_cuda(config) == Arithmetic(4, half=is_half, cpu=False)


def test_the_model_of_the_preflight_counts_as_free(folder, monkeypatch):
    monkeypatch.setattr(ladder, "available_memory", lambda device: 1000)
    model = load_language_model(str(folder / "model"))
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert ladder.free_for_stages(torch.device("cpu"), model) == 1000 + held


def test_settings_of_memory_change_no_result(folder, monkeypatch):
    """All of them on, and chosen by a run that finds little room, which a second start finds recorded."""
    small = {"eval.prompts": 0, "rto.iterations": 1, "rto.rollouts": 4, "rto.minibatch": 4, "stages": ("dpo", "rto")}
    small |= {"rto.sampling.batch_size": 4, "dpo.batch_size": 4, "sft.model": str(folder / "model")}
    plain = with_values(config_of(folder), small | {"output": str(folder / "plain")})
    said: list[str] = []
    pipeline.run(plain, said.append)
    waits = {"offload.frozen": True, "offload.optimizer": True, "model.gradient_checkpointing": True}
    pipeline.run(with_values(plain, waits | {"output": str(folder / "waits")}), said.append)
    assert not any("would be needed" in line for line in said)
    for stage in ("dpo", "rto"):
        a, b = ((folder / run / stage / "model.safetensors").read_bytes() for run in ("plain", "waits"))
        assert a == b
    peak = largest(plain, models_of(plain), Arithmetic())
    monkeypatch.setattr(preflight, "free_for_stages", lambda device, model: peak - 1)
    tight = with_values(plain, {"output": str(folder / "tight")})
    pipeline.run(tight, said.append)
    assert any("would be needed" in line for line in said)
    made_with = json.loads((folder / "tight" / "inputs.json").read_text())["made_with"]
    assert made_with["asked_rows"] == 16384 and made_with["microbatch_rows"] == 8192
    monkeypatch.setattr(preflight, "free_for_stages", lambda device, model: PLENTY)
    again: list[str] = []
    pipeline.run(tight, again.append)
    assert not any("Until now this run was made with" in line for line in again)
