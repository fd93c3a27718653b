"""Adapters on one base: what is on, what learns, what is stored, and what other tools read."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rto_fast.model import attention
from rto_fast.model.adapter_files import CONFIG, WEIGHTS, add_adapter, save_adapter
from rto_fast.model.adapters import Base
from rto_fast.model.language import LanguageModel, zero_head
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import pack
from rto_fast.training import loop
from tests.tiny import SHARED, language_model, sequences

LENGTHS = [(3, 5), (2, 7)]
FAMILIES = ["llama", "llama_tied", "gpt_neox", "qwen3", "gpt2"]


def lora(rank: int = 4) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear")


def moved(base: Base, *names: str) -> None:
    """Give adapters weights that change something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in names:
            for parameter in base.parameters(name).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def family(architecture: str) -> tuple[Base, LanguageModel, LanguageModel, LanguageModel, ScalarModel]:
    """A base with policy, DPO model (frozen), reference and critic on it."""
    hf = language_model(architecture).hf
    base = Base(hf)
    base.add("policy", lora(), seed=1)
    base.add("dpo", lora(), seed=2, trained=False)
    base.add("critic", lora(), seed=3)
    policy, dpo, reference = (LanguageModel(hf, base, name) for name in ("policy", "dpo", None))
    return base, policy, dpo, reference, ScalarModel(hf.base_model, zero_head(48), base=base, adapter="critic")


def logprobs(model: LanguageModel) -> torch.Tensor:
    return response_logprobs(model, pack(*sequences(LENGTHS)), 16)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_new_adapter_changes_nothing_and_off_is_the_base(architecture):
    plain = logprobs(language_model(architecture))
    base, policy, dpo, reference, _ = family(architecture)
    assert torch.equal(logprobs(policy), plain) and base.active is None
    moved(base, "policy", "dpo", "critic")
    assert torch.equal(logprobs(reference), plain)
    assert len({tuple(logprobs(m).tolist()) for m in (policy, dpo, reference)}) == 3


def gradients_of(network) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_two_adapters_that_live_at_once_get_their_own_gradients(architecture):
    """Each alone, together, and together with every layer's forward computed again: the same bits."""

    def trained(policy: bool, critic: bool, checkpointed: bool = False) -> list[torch.Tensor]:
        base, policy_model, dpo, _, critic_model = family(architecture)
        moved(base, "policy", "dpo", "critic")
        torch.nn.init.ones_(critic_model.head.weight)
        if checkpointed:
            base.hf.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": base.recomputed})
        loss = logprobs(policy_model).sum() if policy else 0.0
        loss = loss + (critic_model(pack(*sequences(LENGTHS))).sum() if critic else 0.0)
        with torch.no_grad():
            logprobs(dpo)  # another one is on before the backward
        loss.backward()
        assert all(p.grad is None for p in dpo.parameters())
        return [p.grad for m in (policy_model, critic_model) for p in m.parameters()]

    alone = [a if a is not None else b for a, b in zip(trained(True, False), trained(False, True), strict=True)]
    for together in (trained(True, True), trained(True, True, checkpointed=True)):
        for got, wanted in zip(together, alone, strict=True):
            assert wanted.abs().sum() > 0 and torch.equal(got, wanted)


def test_a_network_on_a_base_owns_its_adapter_alone():
    base, policy, dpo, reference, critic = family("llama")
    assert not list(reference.parameters()) and not any(p.requires_grad for p in dpo.parameters())
    assert {n.partition(".lora")[0].split(".")[-1] for n, _ in policy.named_parameters()} >= {"q_proj", "down_proj"}
    assert len(list(critic.parameters())) == len(list(policy.parameters())) + 2
    for frozen in (reference, dpo):
        frozen.eval().requires_grad_(False)
    assert all(p.requires_grad for m in (policy, critic) for p in m.parameters()) and base.hf.training
    state = loop.make_state(loop.OptimConfig(), {"policy": policy, "critic": critic})
    held = {name: len(parameters) for name, parameters in state.parameters().items()}
    assert held == {"policy": 28, "critic": 30}


def test_a_start_is_a_function_of_its_seed():
    a, b, c = (language_model("llama").hf for _ in range(3))
    states = []
    for hf, seed in ((a, 1), (b, 1), (c, 2)):
        torch.manual_seed(seed + 7)
        base = Base(hf)
        base.add("policy", lora(), seed=seed)
        states.append(base.parameters("policy"))
        assert torch.initial_seed() == seed + 7
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_merged_weights_compute_the_same(architecture):
    base, policy, *_ = family(architecture)
    moved(base, "policy", "dpo")
    before = logprobs(policy).detach()
    hf = base.merge("policy")
    assert not any("lora" in name for name, _ in hf.named_parameters())
    torch.testing.assert_close(logprobs(LanguageModel(hf)), before, rtol=0, atol=5e-6)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_peft_loads_what_is_saved(architecture, tmp_path):
    language_model(architecture).hf.save_pretrained(tmp_path / "sft")
    base, policy, *_ = family(architecture)
    moved(base, "policy", "dpo")
    wanted = logprobs(policy).detach()
    (tmp_path / "rto").mkdir()
    save_adapter(tmp_path / "rto", base, "policy", str(tmp_path / "sft"))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "sft"), tmp_path / "rto")
    for prompt, response, ours in zip(*sequences(LENGTHS), wanted.split([n for _, n in LENGTHS]), strict=True):
        tokens = torch.tensor([prompt + response])
        rows = theirs(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(rows.gather(1, tokens[0, len(prompt) :, None])[:, 0], ours, rtol=0, atol=2e-6)
    again = Base(language_model(architecture).hf)
    assert add_adapter(again, "policy", str(tmp_path / "rto"), "dpo.model") is None
    assert torch.equal(logprobs(LanguageModel(again.hf, again, "policy")), wanted)


@pytest.fixture
def saved(tmp_path):
    base, *_ = family("llama")
    moved(base, "policy")
    (tmp_path / "rto").mkdir()
    save_adapter(tmp_path / "rto", base, "policy", "sft")
    return tmp_path / "rto"


def refused(saved, architecture: str = "llama") -> str:
    with pytest.raises(ValueError) as error:
        add_adapter(Base(language_model(architecture).hf), "policy", str(saved), "dpo.model")
    said = str(error.value)
    assert said.startswith("dpo.model: ") and "\n" not in said
    return said


def test_an_adapter_for_another_base_is_refused(saved):
    assert "does not fit its base" in refused(saved, "gpt_neox")
    weights = load_file(saved / WEIGHTS)
    name = sorted(weights)[0]
    save_file({k: torch.cat([x, x]) if k == name else x for k, x in weights.items()}, saved / WEIGHTS)
    assert f"one for another base: 1 of its weights differ in name or shape, {name} first" in refused(saved)
    save_file({k: x for k, x in weights.items() if k != name}, saved / WEIGHTS)
    assert f"{name} first" in refused(saved)
    save_file({k: x * float("nan") if k == name else x for k, x in weights.items()}, saved / WEIGHTS)
    assert "is not finite" in refused(saved)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"peft_type": "IA3"}, "is a 'IA3' adapter"),
        ({"use_dora": True}, "has use_dora = True, which is not supported"),
        ({"use_rslora": True}, "has use_rslora = True"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights = 'pissa'"),
        ({"something_new": 3}, "has something_new = 3"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"r": 0}, "has r = 0"),
        ({"r": "16"}, "has r = '16'"),
        ({"target_modules": 3}, "must be names of layers, got 3"),
        ({"target_modules": ["nowhere"]}, "does not fit its base"),
    ],
)
def test_an_adapter_that_computes_otherwise_is_refused(saved, change, said):
    config = json.loads((saved / CONFIG).read_text()) | change
    (saved / CONFIG).write_text(json.dumps(config))
    assert said in refused(saved)


def bytes_of(*networks) -> int:
    """Of all storages that these reach, each counted once, whatever it is called."""
    parameters = [p for network in networks for _, p in torch.nn.Module.named_parameters(network)]
    kept = {p.data_ptr() if p.device.type != "meta" else id(p): p.numel() * p.element_size() for p in parameters}
    return sum(kept.values())


def test_four_networks_take_little_more_memory_than_one():
    with torch.device("meta"):
        config = AutoConfig.for_model(
            "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
        )  # fmt: skip
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention.register())
    bases = [hf]
    if (real := SHARED / "models" / "stories260K").exists():
        bases.append(AutoModelForCausalLM.from_pretrained(real, attn_implementation=attention.register()))
    for hf, rank in zip(bases, (16, 1), strict=False):
        alone = bytes_of(hf)
        assert alone > 10**6
        base = Base(hf)
        with torch.device(hf.device):
            for name in ("policy", "dpo", "critic"):
                base.add(name, lora(rank))
            critic = ScalarModel(hf.base_model, zero_head(hf.config.hidden_size), base=base, adapter="critic")
        networks = [LanguageModel(hf, base, name) for name in ("policy", "dpo", None)]
        assert alone < bytes_of(*networks, critic) <= 1.1 * alone


def test_a_copy_of_a_network_keeps_its_adapter():
    base, policy, *_ = family("llama")
    moved(base, "policy")
    assert torch.equal(logprobs(copy.deepcopy(policy)), logprobs(policy))
