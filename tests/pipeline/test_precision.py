"""--model.dtype is of the arithmetic: trained weights are float32, frozen ones take its memory at the same bits."""

import copy

import pytest
import torch

from rto_fast.config import AdapterConfig, DPOConfig, ModelConfig, OptimConfig, SFTConfig
from rto_fast.model.adapters import Base
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.precision import cast_matrices
from rto_fast.model.scalar import ScalarModel, critic_from
from rto_fast.packing import pack, pack_whole
from rto_fast.pipeline import prepare
from rto_fast.pipeline.build import build
from rto_fast.training import loop
from tests.model.test_adapters import lora
from tests.pipeline.test_wiring import config_of, context_of
from tests.tiny import ARCHITECTURES, language_model, sequences
from tests.tiny_run import write_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


def context(folder, dtype: str, **changes):
    path = str(folder / "model")
    given = dict(sft=SFTConfig(model=path), dpo=DPOConfig(model=path), stages=("rto",))
    return context_of(folder, model=ModelConfig(path=path, dtype=dtype), **given | changes)


def kinds(network: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in network.parameters()}


def logprobs(model: LanguageModel, vocab_size: int = 20) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return response_logprobs(model, pack(*sequences([(3, 9), (2, 12)], vocab_size)), 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cast_matrices_compute_the_same_bits_under_autocast(architecture):
    model = language_model(architecture)
    critic = critic_from(model)
    torch.nn.init.normal_(critic.head.weight)
    texts = pack_whole([[5, 6, 7], [8, 9, 10, 11]])

    def values(model: ScalarModel) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(texts)

    wanted, scores = logprobs(model), values(critic)
    size = sum(p.nbytes for p in model.parameters())
    cast_matrices(model.hf, torch.bfloat16)
    cast_matrices(critic.backbone, torch.bfloat16)
    assert torch.equal(logprobs(model), wanted) and torch.equal(values(critic), scores)
    assert sum(p.nbytes for p in model.parameters()) < 0.65 * size


def test_trained_networks_are_float32_and_frozen_ones_take_the_memory_of_the_arithmetic(folder):
    run = context(folder, "bfloat16")
    models = build(run, "rto").stage.collector.models
    assert run.autocast == torch.bfloat16
    assert kinds(models.policy) == kinds(models.critic) == {torch.float32}
    for frozen in (models.reference, models.dpo):
        assert not any(p.requires_grad for p in frozen.parameters())
        assert {p.dtype for p in frozen.hf.model.layers.parameters() if p.ndim == 2} == {torch.bfloat16}
    # the policy starts as pi_ref, to the last bit: the first KL is 0
    ours, theirs = map(logprobs, (models.policy, models.reference))
    assert torch.equal(ours, theirs)
    # a critic starts from float32 weights, not from what pi_ref's were rounded to
    assert all(
        torch.equal(mine, given)
        for mine, given in zip(models.critic.backbone.parameters(), models.policy.hf.model.parameters(), strict=True)
    )
    for stage in ("sft", "dpo", "rm"):
        assert kinds(build(run, stage).model) == {torch.float32}


def test_on_the_cpu_auto_is_float32_without_autocast(folder):
    run = context(folder, "auto")
    models = build(run, "rto").stage.collector.models
    assert (run.dtype, run.autocast) == (torch.float32, None)
    assert all(kinds(m) == {torch.float32} for m in models)


def test_adapters_are_float32_on_a_frozen_base_in_the_arithmetics_type(folder):
    run = context(folder, "bfloat16", adapter=AdapterConfig(rank=2))
    models = build(run, "rto").stage.collector.models
    assert kinds(models.policy) == kinds(models.critic) == {torch.float32}
    frozen = models.reference.hf.model.layers[0].mlp.up_proj.base_layer.weight
    assert frozen.dtype == torch.bfloat16 and not frozen.requires_grad


def test_an_adapter_on_cast_matrices_computes_the_same_bits():
    def adapted(cast: bool) -> torch.Tensor:
        model = language_model("llama")
        if cast:
            cast_matrices(model.hf, torch.bfloat16)
        base = Base(model.hf)
        base.add("policy", lora(), seed=1)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in base.parameters("policy").values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return logprobs(LanguageModel(model.hf, base, "policy"))

    assert torch.equal(adapted(True), adapted(False))


def test_every_weight_moves_at_a_small_learning_rate(folder):
    """In bfloat16 itself 7.7 % of them would: a step of 5e-6 is less than half of what tells two neighbours apart."""
    optim = OptimConfig(lr=5e-6, warmup=0.0, weight_decay=0.0, schedule="constant")
    run = context(folder, "bfloat16", stages=("sft",), sft=SFTConfig(optim=optim, batch_size=8))
    built = build(run, "sft")
    before = copy.deepcopy(built.model.hf.state_dict())
    loop.train(built.stage, built.state, lambda *_: None, autocast=run.autocast)
    used = [n for n, p in built.model.hf.named_parameters() if "embed" not in n]  # not every token has a gradient
    moved = torch.cat([(built.model.hf.state_dict()[n] != before[n]).flatten() for n in used])
    assert moved.float().mean() > 0.999


def test_float16_is_not_trained_in(folder):
    config = config_of(folder, model=ModelConfig(path=str(folder / "model"), dtype="float16"))
    with pytest.raises(ValueError, match="^model.dtype: float16 is .* no loss scaler is here; train with bfloat16"):
        prepare.prepare(config, lambda text: None, folder / "scratch")
