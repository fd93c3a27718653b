"""What stands between a model's weights and its log-probs: head, attention, critic; each against its definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, masking_utils

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel, hidden_states
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.scalar import critic_from
from rto_fast.packing import pack
from rto_fast.rollout import Sampling, rollout
from tests.tiny import ARCHITECTURES, IDS, SIZES, config, language_model, sequences

SMALL = dict(vocab_size=61, num_key_value_heads=2, pad_token_id=0, **SIZES, **IDS)
SCALED = {
    "logit_scale": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "logits_scaling": lambda: GraniteConfig(**SMALL, logits_scaling=4.0),
    "attention": lambda: GraniteConfig(**SMALL, attention_multiplier=0.9),
}
LENGTHS = [(3, 4), (5, 6)]


def scaled(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(SCALED[kind](), attn_implementation=attention.register())
    torch.nn.init.normal_(hf.get_output_embeddings().weight, std=0.3)
    return LanguageModel(hf.eval())


def own_logprobs(model: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """(tokens,) log-probs by transformers' own forward, logits and attention."""
    hf = copy.deepcopy(model.hf)
    hf.set_attn_implementation("eager")
    logprobs = hf(torch.tensor([prompt + response]), use_cache=False).logits[0, :-1].log_softmax(-1)
    return logprobs[len(prompt) - 1 :].gather(1, torch.tensor(response)[:, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("kind", SCALED)
def test_a_models_own_scales_are_its_scales_here(kind):
    model = scaled(kind)
    prompts, responses = sequences(LENGTHS)
    packed = pack(prompts, responses)
    got = response_logprobs(model, packed, 16)
    want = torch.cat([own_logprobs(model, p, r) for p, r in zip(prompts, responses, strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", SCALED)
def test_a_models_own_scales_are_its_scales_while_it_decodes(kind):
    model = scaled(kind)
    prompts, _ = sequences(LENGTHS)
    for answer in rollout(model.hf, prompts, Sampling(max_new_tokens=6), (), seed=0):
        want = own_logprobs(model, answer.prompt, answer.response)
        torch.testing.assert_close(torch.tensor(answer.logprobs), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_soft_cap_bounds_the_logits():
    model = language_model("llama")
    model.hf.config.final_logit_softcapping = 2.0
    (prompt,), (response,) = sequences([(3, 5)])
    packed = pack([prompt], [response])
    logits = model.hf(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    want = (2.0 * torch.tanh(logits / 2.0)).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    torch.testing.assert_close(response_logprobs(model, packed, 16), want, rtol=1e-4, atol=1e-4)


def test_attention_without_packing_is_causal_over_a_prompt():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 7, 8) for _ in range(3))
    got, _ = attention.packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.7)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)
    torch.testing.assert_close(got, want.transpose(1, 2))


def test_a_critic_starts_from_a_copy_of_the_backbone():
    model = language_model("llama")
    critic = critic_from(model)
    for a, b in zip(critic.backbone.parameters(), model.hf.base_model.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert all(p.abs().max() == 0 for p in critic.head.parameters()) and critic.head.bias is not None
    assert critic_from(model, bias=False).head.bias is None


def test_dropout_is_off_in_training_too():
    torch.manual_seed(0)
    settings = config("gpt2")
    settings.resid_pdrop = settings.embd_pdrop = settings.attn_pdrop = 0.5
    hf = AutoModelForCausalLM.from_config(settings, attn_implementation=attention.register())
    model = LanguageModel(hf).train()
    (prompt,), (response,) = sequences([(3, 5)])
    packed = pack([prompt], [response])
    first, second = (response_logprobs(model, packed, 16) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_forward_does_not_look_for_packed_sequences(architecture, monkeypatch):
    """transformers would, and would wait for a GPU to know whether there are any."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: pytest.fail("it looks"))
    hidden_states(language_model(architecture).hf.base_model, pack(*sequences([(3, 4), (2, 5)])))
