"""Swapped tokens: found in any text, and ranked by the stated definition."""

import numpy as np
import pytest

from rto_fast.credit.swaps import rank, swapped_places
from rto_fast.tasks.quickstart.corrupt import corrupted_answers
from rto_fast.tasks.quickstart.oracle import token_scores


def test_alignment_finds_the_swapped_words_of_the_quickstart():
    for answer in corrupted_answers(1002, 0):
        assert swapped_places(answer.right.split(), answer.corrupted.split()) == list(answer.swapped)


@pytest.mark.parametrize(
    "right, corrupted, places",
    [
        ("a b c d", "a x c d", [1]),
        ("a b c d", "a x y c d", [1, 2]),
        ("a b c d", "a b d", []),  # something is missing, and no token of its own is wrong
        ("a b c d", "a b x c d", [2]),
        ("a b", "a b", []),
    ],
)
def test_alignment_by_hand(right, corrupted, places):
    assert swapped_places(right.split(), corrupted.split()) == places


def test_ranking_by_hand():
    rewards = [np.array([0.1, -0.5, 0.0]), np.array([-0.2, -0.5, -0.3, 0.4]), np.array([0.0, 0.0])]
    ranking = rank(rewards, [[1], [0, 1], [0]])
    # second answer: place 2 is below place 0, so one of its two is not among the two lowest; third: a tie is a miss
    assert (ranking.answers, ranking.swapped) == (3, 4)
    assert ranking.lowest.value == pytest.approx(1 / 3)
    assert ranking.tokens.value == pytest.approx(2 / 4)
    assert ranking.chance == pytest.approx((1 / 3 + 1 / 6 + 1 / 2) / 3)
    others, swapped = [0.1, 0.0, -0.3, 0.4, 0.0], [-0.5, -0.2, -0.5, 0.0]
    wins = [(o > s) + 0.5 * (o == s) for o in others for s in swapped]
    assert ranking.auc.value == pytest.approx(np.mean(wins))
    assert ranking.gap == pytest.approx(np.mean(others) - np.mean(swapped))


def test_the_oracle_itself_ranks_every_swapped_word_lowest():
    answers = corrupted_answers(200, 0)
    scores = [np.array(token_scores(a.prompt, [*a.corrupted.split(), "<eos>"])) for a in answers]
    ranking = rank(scores, [a.swapped for a in answers])
    assert ranking.lowest.value == ranking.tokens.value == ranking.auc.value == 1


def test_rewards_at_random_are_at_chance():
    rng = np.random.default_rng(0)
    answers = corrupted_answers(1002, 0)
    ranking = rank([rng.normal(size=len(a.corrupted.split()) + 1) for a in answers], [a.swapped for a in answers])
    assert ranking.lowest.low < ranking.chance < ranking.lowest.high
    assert ranking.auc.low < 0.5 < ranking.auc.high
