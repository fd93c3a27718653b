"""An evaluation's figures against the models' own logits."""

import numpy as np
import pytest
import torch

from rto_fast.data.encode import EncodedPair
from rto_fast.evaluate import policies
from rto_fast.evaluate.policies import Evaluation, answer_logprobs, evaluate, win_rates
from rto_fast.rollout import Completion, Sampling
from tests.stages.test_stages import eager_logprob
from tests.tiny import language_model, sequences

PROMPTS = sequences([(n, 1) for n in (5, 1, 3, 2, 7, 4)])[0]
OPTIONS = dict(sampling=Sampling(max_new_tokens=9), eos_token_ids=(2, 5, 9), batch_size=3)
LIMITS = dict(microbatch_rows=24, workspace_mb=16)


def measured(seed: int = 0, **options) -> Evaluation:
    policy, reference, dpo = (language_model("llama", s) for s in (1, 0, 2))
    models = {"reference": reference, "dpo": dpo, "beta": 0.3}
    return evaluate(policy, prompts=PROMPTS, seed=seed, **models, **OPTIONS, **LIMITS, **options)


@torch.no_grad()
def test_kl_and_dpo_reward_are_sums_of_log_ratios_over_the_answer():
    got = measured()
    models = [language_model("llama", s) for s in (1, 0, 2)]
    for i, a in enumerate(got.answers):
        policy, reference, dpo = (float(eager_logprob(m, a.prompt, a.response)) for m in models)
        assert got.kl[i] == pytest.approx(policy - reference, abs=1e-3)
        assert got.implicit[i] == pytest.approx(0.3 * (dpo - reference), abs=1e-3)
    assert len({len(a.response) for a in got.answers}) > 1
    assert [a.prompt for a in got.answers] == PROMPTS


@torch.no_grad()
def test_every_answer_has_its_own_log_probs_however_they_are_packed():
    model = language_model("llama", 1)
    answers = measured().answers
    packed, alone = answer_logprobs(model, answers, 24, 16), [answer_logprobs(model, [a], 24, 16)[0] for a in answers]
    for a, one, other in zip(answers, packed, alone, strict=True):
        assert one.shape == (len(a.response),)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_seed_is_its_own_and_the_same_for_every_policy():
    first, again, other = (measured(seed).answers for seed in (0, 0, 1))
    assert first == again and [a.response for a in first] != [a.response for a in other]


def test_what_is_told_of_a_policy():
    answers = [Completion([1], [5] * n, [0.0] * n, finish) for n, finish in ((3, "eos"), (4, "length"), (5, "eos"))]
    score = np.array([1.0, 2.0, 6.0])
    told = Evaluation(answers, kl=np.array([0.0, 1.0, 5.0]), implicit=None, oracle=None, score=score).summary()
    assert told["eos_rate"] == pytest.approx(2 / 3) and told["answers"] == 3 and "implicit_reward" not in told
    assert told["score"]["mean"] == 3 and told["kl"]["mean"] == 2 and told["length"]["mean"] == 4
    assert told["length"]["ci95"] == pytest.approx(1.959964 / np.sqrt(3))


def test_the_row_beats_the_column():
    answers = [Completion([1], [5], [0.0], "eos")] * 4
    zeros = np.zeros(4)
    high, low = (Evaluation(answers, zeros, None, None, score=np.array(x)) for x in ([1.0, 2, 3, 0], [0.0, 1, 3, 1]))
    table = win_rates({"high": high, "low": low})
    assert table["high"]["low"]["mean"] == pytest.approx(2.5 / 4)
    assert table["low"]["high"]["mean"] == pytest.approx(1.5 / 4)


def test_a_pairs_reward_is_the_sum_over_its_answer_whatever_its_length(monkeypatch):
    # chosen: three tokens of .2; rejected: one of .5
    found = {"dpo": [np.full(3, 0.2), np.array([0.5])] * 2, "reference": [np.zeros(3), np.zeros(1)] * 2}
    monkeypatch.setattr(policies, "answer_logprobs", lambda model, answers, *limits: found[model])
    pairs = [EncodedPair([3], [4, 5, 2], [2])] * 2
    assert policies.preference_accuracy("dpo", "reference", pairs, microbatch_rows=8, workspace_mb=None).value == 1
