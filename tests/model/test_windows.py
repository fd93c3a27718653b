"""Sliding windows and attention soft-caps: packed rows and rollouts as transformers' own eager attention has them."""

import copy
import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, MistralConfig, PreTrainedConfig

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import pack
from rto_fast.rollout import Sampling, rollout
from rto_fast.rollout import lane as lanes
from tests.tiny import IDS, SIZES, sequences

VOCABULARY = 61
LENGTHS = [(3, 9), (20, 14), (20, 14), (1, 2), (30, 1)]
"""Some within a window of 12, some far beyond."""


def config_of(family: str, window: int) -> PreTrainedConfig:
    sizes = dict(vocab_size=VOCABULARY, **SIZES, **IDS, num_key_value_heads=2, sliding_window=window)
    mixed = dict(head_dim=8, layer_types=["sliding_attention", "full_attention"])
    if family == "gemma2":
        return Gemma2Config(**sizes, **mixed, attn_logit_softcapping=0.5)
    return MistralConfig(**sizes) if family == "mistral" else Gemma3TextConfig(**sizes, **mixed)


def models(family: str, window: int = 12) -> tuple[LanguageModel, LanguageModel]:
    """With our attention, and with transformers' eager one; weights are the same, and large enough to matter."""
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(config_of(family, window), attn_implementation=attention.register()).double()
    with torch.no_grad():
        for p in own.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)
    eager = copy.deepcopy(own)
    eager.set_attn_implementation("eager")
    return LanguageModel(own.eval()), LanguageModel(eager.eval())


def alone(model: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + response])
    logits = model.hf(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("window", [12, 100])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_packed_rows_equal_the_librarys_own_attention(family, window):
    own, eager = models(family, window)
    prompts, responses = sequences(LENGTHS, VOCABULARY)
    got = response_logprobs(own, pack(prompts, responses), 16)
    want = torch.cat([alone(eager, p, r) for p, r in zip(prompts, responses, strict=True)])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)  # its softmax is in float32
    got.sum().backward()
    want.sum().backward()
    for a, b in zip(own.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    if window == 100:
        return
    # the window and the cap are no decoration here
    wide, _ = models(family, 100)
    with torch.no_grad():
        assert (response_logprobs(wide, pack(prompts, responses), 16) - got).abs().max() > 1e-3


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_rollout_samples_from_the_model_that_is_trained(family, fused, monkeypatch):
    """With prompts beyond the window, by masks and by decode_attention."""
    if fused:
        monkeypatch.setattr(lanes, "_FUSED", {"cpu"})
    own, eager = models(family)
    prompts, _ = sequences([(30, 0), (5, 0), (17, 0)], VOCABULARY)
    for answer in rollout(own.hf, prompts, Sampling(max_new_tokens=16), (), seed=0):
        with torch.no_grad():
            want = alone(eager, answer.prompt, answer.response)
        torch.testing.assert_close(torch.tensor(answer.logprobs).double(), want, rtol=1e-4, atol=1e-4)


def on_cuda(window: int | None, softcap: float | None) -> torch.Tensor:
    q = torch.zeros(1, 2, 5, 8)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    return attention._varlen_cuda(q, q, q, offsets, 5, 0.7, window, softcap)


def test_torchs_own_is_told_of_windows_and_refuses_soft_caps(monkeypatch):
    varlen, calls = pytest.importorskip("torch.nn.attention.varlen"), []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, *more, **options: calls.append(options) or q)
    on_cuda(4, None)
    on_cuda(None, None)
    assert [call["window_size"] for call in calls] == [(3, 0), (-1, 0)]
    with pytest.raises(ValueError, match="model.path: its attention is soft-capped, which on CUDA needs flash-attn"):
        on_cuda(4, 30.0)
