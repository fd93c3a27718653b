"""Decoding steps without masks, as on a GPU: the same answers as with them. Here the operator's definition serves."""

import pytest
import torch

from rto_fast.model import attention
from rto_fast.rollout import Sampling, beam_search, lane, realign, rollout
from tests.rollout.test_rollout import CONFIGS, build, forward_logprobs, ragged

attention.register()
# gemma2 caps its attention's scores, which rto_packed does not compute
NAMES = sorted(CONFIGS.keys() - {"gemma2_window"})


class Steps(attention.RaggedStep):
    """Counts the steps that are taken without masks."""

    taken: list["Steps"]

    def __init__(self, *args):
        super().__init__(*args)
        self.taken.append(self)


@pytest.fixture
def steps(monkeypatch) -> list[Steps]:
    monkeypatch.setattr(Steps, "taken", [], raising=False)
    monkeypatch.setattr(lane, "RaggedStep", Steps)
    return Steps.taken


@pytest.fixture
def fused(monkeypatch):
    return lambda: monkeypatch.setattr(lane, "_FUSED", {"cpu"})


def same(ours, theirs, atol=2e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.prompt, a.response, a.finish) == (b.prompt, b.response, b.finish)
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=atol, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_answers_as_with_masks(name, temperature, steps, fused):
    model, prompts = build(name, attention.NAME), ragged()
    sampling, eos = Sampling(temperature=temperature, max_new_tokens=12), tuple(range(3, 9))
    masked = rollout(model, prompts, sampling, eos, seed=5, max_batch=4)
    assert not steps
    fused()
    same(rollout(model, prompts, sampling, eos, seed=5, max_batch=4), masked)
    assert len(steps) >= 12 and {step.served for step in steps} == {2}


@pytest.mark.parametrize("name", ["llama", "neox", "gpt2"])
def test_the_same_answers_as_a_forward_without_a_cache(name, steps, fused):
    fused()
    model = build(name, attention.NAME)
    for answer in rollout(model, ragged(), Sampling(temperature=0, max_new_tokens=80), (), seed=0, max_batch=4):
        logprobs, logits = forward_logprobs(model, answer.prompt, answer.response)
        assert answer.response == logits.argmax(-1).tolist()
        torch.testing.assert_close(torch.tensor(answer.logprobs), logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_beams_and_mixtures(name, steps, fused):
    model, prompts = build(name, attention.NAME), ragged(6)
    torch.manual_seed(1)
    other = type(model)(model.config).eval()
    mix = realign(model, other, model, 0.5)
    run = lambda: (  # noqa: E731
        beam_search(model, prompts, (5, 6), num_beams=3, max_new_tokens=9, max_batch=9),
        rollout(mix, prompts, Sampling(max_new_tokens=9), (5, 6), seed=1),
    )
    beams, mixed = run()
    fused()
    our_beams, our_mixed = run()
    assert steps
    same(our_mixed, mixed)
    for [ours], [theirs] in zip(our_beams, beams, strict=True):
        assert ours.response == theirs.response and ours.score == pytest.approx(theirs.score, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_under_autocast(name, steps, fused):
    """Half precision throughout: keys as they were stored, queries rounded as they are for torch's operator."""
    fused()
    model = build(name, attention.NAME)
    with torch.autocast("cpu", torch.bfloat16):
        answers = rollout(model, ragged(), Sampling(max_new_tokens=12), (), seed=0, max_batch=4)
    for answer in answers:
        logprobs, _ = forward_logprobs(model, answer.prompt, answer.response)
        torch.testing.assert_close(torch.tensor(answer.logprobs), logprobs, atol=0.1, rtol=0)
    assert steps


def test_a_network_that_does_not_hand_it_down_is_stepped_with_masks(steps, fused, monkeypatch):
    model, prompts = build("llama", attention.NAME), ragged()
    sampling = Sampling(max_new_tokens=12)
    masked = rollout(model, prompts, sampling, (), seed=0, max_batch=4)
    fused()
    inner = model.model.forward
    drop = lambda *args, ragged_step=None, **kwargs: inner(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(model.model, "forward", drop)
    assert rollout(model, prompts, sampling, (), seed=0, max_batch=4) == masked
    assert len(steps) == 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_attention_keeps_its_masks(implementation, steps, fused):
    fused()
    rollout(build("llama", implementation), ragged(3), Sampling(max_new_tokens=2), (), seed=0)
    assert not steps


def test_each_layer_has_its_own_window(steps, fused):
    fused()
    for name, windows in (("gemma3_window", (5, None)), ("mistral_window", (5, 5)), ("neox", (None, None))):
        rollout(build(name, attention.NAME), ragged(3), Sampling(max_new_tokens=2), (), seed=0)
        assert steps[-1].windows == windows
