"""How often a reward prefers the chosen answer: the figures that README quotes, against log-probs of whole logits."""

from types import SimpleNamespace

import pytest
import torch

from rto_fast.data.encode import EncodedPair
from rto_fast.evaluate.policies import preference_accuracy
from rto_fast.pipeline.measure import _score_accuracy
from rto_fast.rl.losses import wins
from tests.stages.test_stages import eager_logprob, pairs
from tests.tiny import language_model

PAIRS = [EncodedPair([3, 4], [5 + i, 6, 2], [7, 8 + i, 9, 2]) for i in range(7)]
TIE = EncodedPair([3], [5, 2], [5, 2])


@torch.no_grad()
def test_preference_accuracy_is_the_share_of_pairs_whose_chosen_answer_pi_dpo_prefers():
    dpo, reference = language_model("llama", 1), language_model("llama", 0)

    def reward(prompt, response) -> float:
        return float(eager_logprob(dpo, prompt, response) - eager_logprob(reference, prompt, response))

    rows = pairs()[:7]
    right = [reward(p.prompt, p.chosen) > reward(p.prompt, p.rejected) for p in rows]
    assert 0 < sum(right) < len(right) and 2 * sum(right) != len(right)
    limits = {"microbatch_rows": 64, "workspace_mb": 16}
    assert preference_accuracy(dpo, reference, rows, **limits).value == pytest.approx(sum(right) / len(right))
    flipped = [EncodedPair(p.prompt, p.rejected, p.chosen) for p in rows]
    assert preference_accuracy(dpo, reference, flipped, **limits).value == pytest.approx(1 - sum(right) / len(right))
    with_tie = preference_accuracy(dpo, reference, [*rows, TIE], **limits)
    assert with_tie.value == pytest.approx((sum(right) + 0.5) / 8)
    assert preference_accuracy(reference, reference, rows, **limits).value == 0.5  # a reward that tells nothing


def test_score_accuracy_is_the_share_of_pairs_whose_chosen_answer_scores_higher():
    context = SimpleNamespace(corpus=SimpleNamespace(held_out=[*PAIRS, TIE]))
    higher = {5, 6, 7, 8, 9}  # the first token of a chosen answer is 5 ... 11, of a rejected one 7
    got = _score_accuracy(context, lambda answers: [float(a.response[0] in higher) for a in answers])
    # five chosen ones score 1 as every rejected one does, two score 0; the tie's answers are the same
    assert got["mean"] == pytest.approx((6 * 0.5 + 2 * 0) / 8)
    got = _score_accuracy(context, lambda answers: [float(len(a.response) == 3) for a in answers])
    assert got["mean"] == pytest.approx((7 + 0.5) / 8)


def test_a_margin_of_nothing_is_half_a_win():
    assert wins(torch.tensor([2.0, 0.0, -1e-9, -0.0])).tolist() == [1.0, 0.5, 0.0, 0.5]
