"""Answers are drawn from float32 logits of half-precision arithmetic, the distribution that they are scored by."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import pack
from rto_fast.rollout import Sampling, beam_search, decode, rollout
from rto_fast.rollout.lane import Batch
from tests.rollout.test_rollout import CONFIGS, gqa, ragged

FAMILIES = {**CONFIGS, "cohere": CohereConfig(**gqa, logit_scale=0.25)}


def made(name: str, stored: bool):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name], attn_implementation=attention.register()).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)  # logits whose eighth bit counts
    return model.bfloat16() if stored else model


def precision(stored: bool):
    return nullcontext() if stored else torch.autocast("cpu", torch.bfloat16)


def gap(model, stored: bool) -> float:
    """Mean difference of a sampled token's log-prob from that of the scoring operators."""
    with precision(stored):
        answers = rollout(model, ragged(8), Sampling(max_new_tokens=16), (), seed=1)
        batch = pack([a.prompt for a in answers], [a.response for a in answers])
        with torch.no_grad():
            scored = response_logprobs(LanguageModel(model), batch, None)
    return (torch.tensor([p for a in answers for p in a.logprobs]) - scored).abs().mean().item()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "autocast"])
@pytest.mark.parametrize("name", ["llama", "neox"])
def test_logits_are_not_rounded(monkeypatch, name, stored):
    """What differs is how a step's attention rounds; without it the gap is larger by the rounding of logits."""
    close = gap(made(name, stored), stored)
    monkeypatch.setattr(decode, "float32_logits", lambda models: nullcontext())
    assert 3 * close < gap(made(name, stored), stored)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "autocast"])
@pytest.mark.parametrize("name", ["llama", "neox", "gpt2", "cohere", "gemma2_window"])
def test_logits_are_the_heads_of_rounded_operands(monkeypatch, name, stored):
    """Of what the head was given, in float64; scales and soft-caps of the model's own code are in float32 too."""
    model, given, got = made(name, stored), [], []
    model.get_output_embeddings().register_forward_pre_hook(lambda head, args: given.append(args[0]))
    real = Batch.step
    monkeypatch.setattr(Batch, "step", lambda *args: [got.append(z) or z for z in real(*args)])
    with precision(stored):
        rollout(model, ragged(5), Sampling(max_new_tokens=4), (), seed=1, max_batch=5)
    head = LanguageModel(model).head()
    for hidden, logits in zip([x for x in given if x.shape[1]], got, strict=True):
        z = hidden[:, -1].bfloat16().double() @ head.weight.bfloat16().double().T
        if head.softcap:
            z = head.softcap * (z / head.softcap).tanh()
        torch.testing.assert_close(logits, (z / head.temperature).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "autocast"])
def test_heads_are_float32_within_and_themselves_afterwards(monkeypatch, stored):
    kinds = []
    real = Batch.step
    monkeypatch.setattr(Batch, "step", lambda *args: [kinds.append(z.dtype) or z for z in real(*args)])
    model = made("llama", stored)
    with precision(stored):
        rollout(model, ragged(3), Sampling(max_new_tokens=4), (), seed=1)
        beam_search(model, ragged(3), (), num_beams=2, max_new_tokens=4)
        assert kinds == [torch.float32] * len(kinds) and len(kinds) == 8
        assert "forward" not in vars(model.lm_head)
        assert model(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits.dtype == torch.bfloat16


def test_a_head_is_itself_again_after_an_error():
    model = made("llama", True)
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        rollout(model, ragged(3), Sampling(max_new_tokens=4), (), seed=1)
    assert "forward" not in vars(model.lm_head)


def test_float32_runs_the_head_as_it_is():
    model = made("llama", False)
    called = []
    model.lm_head.register_forward_hook(lambda *args: called.append("forward" in vars(model.lm_head)))
    rollout(model, ragged(3), Sampling(max_new_tokens=4), (), seed=1)
    assert called and not any(called)
