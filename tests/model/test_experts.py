"""Mixtures of experts: the numbers of transformers' own loop over experts, router and experts trained, no wait."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, MixtralConfig, Qwen3MoeConfig

from rto_fast.model import attention, experts
from rto_fast.model.checkpointing import checkpoint_layers
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.precision import cast_matrices
from rto_fast.model.quantize import quantize
from rto_fast.packing import pack
from rto_fast.rollout import Sampling, rollout
from tests.tiny import IDS, SIZES, sequences

MORE = dict(vocab_size=61, **SIZES, **IDS)
CONFIGS = {
    "mixtral": MixtralConfig(**MORE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "qwen3": Qwen3MoeConfig(
        **MORE, num_key_value_heads=2, head_dim=16, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=3
    ),
    # its first layer is dense, the second has an expert for all
    "deepseek": DeepseekV3Config(
        **MORE, num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
        v_head_dim=16,
    ),
}  # fmt: skip
NAMES = list(CONFIGS)
PROMPTS, RESPONSES = sequences([(3, 4), (2, 6), (5, 1)])


def mixture(name: str, implementation: str = experts.NAME, attn: str = attention.NAME) -> LanguageModel:
    experts.register()
    attention.register()
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attn, experts_implementation=implementation)
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel(hf)


def loss_of(model: LanguageModel, prompts=PROMPTS, responses=RESPONSES) -> torch.Tensor:
    return response_logprobs(model, pack(prompts, responses), 16).sum()


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_and_gradients_are_those_of_the_loop_over_experts(name):
    ours, theirs = mixture(name), mixture(name, "eager", "eager")
    loss_of(ours).backward()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logits = theirs.hf(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        (logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()).backward()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=2e-5, msg=lambda said, key=key: f"{key}: {said}")
    routers = [p.grad for key, p in ours.named_parameters() if key.endswith("gate.weight")]
    stacked = experts.expert_maps(ours.hf)
    assert routers and stacked and all(g.abs().max() > 0 for g in routers)
    assert all(p.grad.abs().max() > 0 for p in stacked.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_micro_batches(name):
    whole, parts = mixture(name), mixture(name)
    loss_of(whole).backward()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        loss_of(parts, [prompt], [response]).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_recomputed_layer_gives_the_same_bits(name):
    plain, again = mixture(name), mixture(name)
    checkpoint_layers(again.hf)
    again.train()
    plain.train()
    for model in (plain, again):
        loss_of(model).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_products_are_in_its_type_and_gradients_in_float32(name, monkeypatch):
    model, exact, types = mixture(name), mixture(name), []
    real = experts.grouped_mm_experts_forward

    def seen(module, hidden, *args):
        out = real(module, hidden, *args)
        types.append((hidden.dtype, module.down_proj.dtype, out.dtype))
        return out

    monkeypatch.setattr(experts, "grouped_mm_experts_forward", seen)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert set(types) == {(torch.bfloat16,) * 3}
    stacked = experts.expert_maps(model.hf)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in stacked.values())
    loss_of(exact).backward()
    for key, p in experts.expert_maps(exact.hf).items():
        assert (stacked[key].grad - p.grad).norm() < 0.2 * p.grad.norm()


@pytest.mark.parametrize("name", NAMES)
def test_frozen_ones_take_half_the_memory_and_compute_the_same_bits(name):
    model, frozen = mixture(name), mixture(name)
    cast_matrices(frozen.hf.requires_grad_(False), torch.bfloat16)
    assert {p.dtype for p in experts.expert_maps(frozen.hf).values()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(loss_of(model), loss_of(frozen))


@pytest.mark.parametrize("name", NAMES)
def test_answers_have_the_log_probs_of_a_forward(name):
    model = mixture(name)
    answers = rollout(model.hf, PROMPTS, Sampling(max_new_tokens=9), (), seed=0, max_batch=2)
    with torch.no_grad():
        found = response_logprobs(model, pack(PROMPTS, [a.response for a in answers]), 16)
    torch.testing.assert_close(torch.tensor(sum((a.logprobs for a in answers), [])), found, rtol=0, atol=1e-4)


def test_no_noise_is_added_in_training():
    config = copy.deepcopy(CONFIGS["mixtral"])
    config.router_jitter_noise = 0.5
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention.register())
    model = LanguageModel(hf).train()
    assert torch.equal(loss_of(model), loss_of(model))


def test_experts_are_not_quantised():
    with pytest.raises(ValueError, match="^adapter.quantize: the experts of a MixtralForCausalLM are no nn.Linear"):
        quantize(mixture("mixtral").hf, "adapter.quantize")
