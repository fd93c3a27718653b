"""Answers to one prompt: it is read once, and they are those of prompts that are read each for itself."""

import pytest
import torch

from rto_fast.rollout import Sampling, rollout
from rto_fast.rollout import lane as lanes
from rto_fast.rollout.beam import beam_search
from tests.rollout.test_rollout import build, ragged

SAMPLING = Sampling(max_new_tokens=12)
EOS = tuple(range(3, 12))


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many prompts each prefill reads."""
    sizes: list[int] = []
    prefill = lanes._Lane.prefill

    def noted(self, ids, first_row, row_step):
        sizes.append(ids.shape[0])
        prefill(self, ids, first_row, row_step)

    monkeypatch.setattr(lanes._Lane, "prefill", noted)
    return sizes


def one_by_one(monkeypatch) -> None:
    """Rollouts as if no two prompts were the same."""
    plain = lanes.Batch._next
    tuples = lambda self: [(*p, -i) for i, p in enumerate(self.prompts)]  # noqa: E731

    def apart(self, places, room):
        prompts, self.prompts = self.prompts, tuples(self)
        try:
            return plain(self, places, room)
        finally:
            self.prompts = prompts

    monkeypatch.setattr(lanes.Batch, "_next", apart)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
@pytest.mark.parametrize("max_batch", [5, 24])
def test_a_group_reads_its_prompt_once_and_answers_as_each_alone(name, max_batch, read, monkeypatch):
    model = build(name)
    prompts = [p for p in ragged(6) for _ in range(4)]
    shared = rollout(model, prompts, SAMPLING, EOS, seed=3, max_batch=max_batch)
    assert [a.prompt for a in shared] == prompts
    # a group that does not fit in whole reads its prompt again, with those that come later
    few, most = sum(read), len(prompts)
    assert few == 6 if max_batch == 24 else few < most
    read.clear()
    one_by_one(monkeypatch)
    apart = rollout(model, prompts, SAMPLING, EOS, seed=3, max_batch=max_batch)
    assert sum(read) == most
    for a, b in zip(shared, apart, strict=True):
        assert a.response == b.response and a.finish == b.finish
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0)


def test_prompts_of_one_token_and_beams_share_too(read):
    model = build("llama")
    answers = rollout(model, [[5]] * 6, SAMPLING, EOS, seed=0, max_batch=3)
    assert not read and len({tuple(a.response) for a in answers}) > 1
    prompts = [p for p in ragged(3) for _ in range(2)]
    found = beam_search(model, prompts, EOS, num_beams=4, max_new_tokens=8, max_batch=24)
    assert sum(read) == 3
    for a, b in zip(found[::2], found[1::2], strict=True):
        assert [x.response for x in a] == [x.response for x in b]
