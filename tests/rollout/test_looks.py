"""Sampled tokens are looked at after every few steps on a GPU: the answers are the same, and the waits fewer."""

import pytest
import torch

from rto_fast.rollout import Sampling, decode, rollout
from tests.rollout.test_rollout import build, ragged

EOS = (3, 5, 7, 11, 13)


def answers(monkeypatch, look: int, **sampling):
    monkeypatch.setattr(decode, "_LOOK", {"cpu": look})
    looks = []
    real = decode._Decoder._look
    monkeypatch.setattr(decode._Decoder, "_look", lambda self, made: looks.append(len(made)) or real(self, made))
    done = []
    made = rollout(
        build("llama"),
        ragged(20),
        Sampling(max_new_tokens=21, **sampling),
        EOS,
        seed=4,
        max_batch=6,
        progress=done.append,
    )
    assert sum(done) == 20
    monkeypatch.undo()
    return made, looks


@pytest.mark.parametrize("look", [2, 8, 64])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"top_k": 9, "top_p": 0.9}], ids=["all", "greedy", "top"])
def test_the_answers_are_those_of_a_look_at_every_step(monkeypatch, look, sampling):
    wanted, every = answers(monkeypatch, 1, **sampling)
    got, looks = answers(monkeypatch, look, **sampling)
    assert [(a.response, a.finish) for a in got] == [(a.response, a.finish) for a in wanted]
    assert len({a.finish for a in wanted}) == 2 or sampling
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-5, atol=1e-5)
    assert set(every) == {1} and max(looks) == min(look, 21) and len(looks) < len(every)


def test_no_step_goes_beyond_the_room_of_an_answer(monkeypatch):
    """Rows that came later are younger: the oldest bounds how far all go."""
    places = []
    real = decode._Decoder._step
    monkeypatch.setattr(decode._Decoder, "_step", lambda self: places.append(self.counts.max().item()) or real(self))
    answers(monkeypatch, 8)
    assert max(places) == 20


def test_logits_that_are_not_finite_are_said_at_the_look(monkeypatch):
    """The steps behind them are made with a token that there is."""
    monkeypatch.setattr(decode, "_LOOK", {"cpu": 8})
    model, steps = build("llama"), []
    real = decode._Decoder._step

    def step(self):
        steps.append(0)
        if len(steps) == 3:
            model.lm_head.weight.data[:] = torch.nan
        return real(self)

    monkeypatch.setattr(decode._Decoder, "_step", step)
    with pytest.raises(ValueError, match="the logits for prompt [0-9]+ after 2 new tokens are not finite"):
        rollout(model, ragged(4), Sampling(max_new_tokens=21), (), seed=0)
    assert len(steps) == 8
