"""Intervals against figures worked out by hand, and against simulation where they claim a coverage."""

import numpy as np
import pytest

from rto_fast.evaluate.stats import Estimate, credit_auc, mean_estimate, win_rate


def test_mean_by_hand():
    # deviations -2 -1 0 1 2: s^2 = 10/4, s/sqrt(5) = sqrt(0.5)
    got = mean_estimate([1, 2, 3, 4, 5])
    assert got.value == 3
    assert got.ci95 == pytest.approx(1.959964 * 0.7071068, rel=1e-6)
    assert (got.low, got.high) == pytest.approx((3 - 1.385904, 3 + 1.385904), rel=1e-6)


def test_win_rate_is_wilsons_interval():
    # 8 of 10, a published example: (0.4902, 0.9433)
    got = win_rate([1] * 8 + [0] * 2, [0] * 8 + [1] * 2)
    assert got == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    assert win_rate([0] * 10, [1] * 10) == pytest.approx((0, 0, 0.2775328), abs=1e-6)
    assert win_rate([1] * 10, [0] * 10).high == 1


def test_a_tie_is_half_a_win():
    assert win_rate([1, 2, 3, 4], [1, 2, 3, 5]).value == 0.375
    a, b = np.random.default_rng(0).integers(0, 4, (2, 500))
    assert win_rate(a, b).value == pytest.approx(1 - win_rate(b, a).value)


def test_auc_by_hand():
    # positives 3 and 1 against negatives 2, 1, 0: 3 + (0 + 0.5 + 1) of 6 pairs
    got = credit_auc([[3.0, 2.0], [1.0, 9.0], [1.0, 0.0]], [[1, -1], [1, 0], [-1, -1]])
    assert got.value == pytest.approx(4.5 / 6)
    # placements .. positives (1, .5) - .75 over 2, negatives (.5, .75, 1) - .75 over 3, summed by response
    parts = np.array([0.25 / 2 - 0.25 / 3, -0.25 / 2, 0 / 3 + 0.25 / 3])
    assert parts.sum() == pytest.approx(0)
    # of n responses, n / (n - 1) times the sum of squares
    assert got.low == pytest.approx(0.75 - 1.959964 * np.sqrt(3 / 2 * (parts**2).sum()))
    assert got.high == 1


def test_aucs_interval_adds_up_each_responses_own_tokens():
    rng = np.random.default_rng(5)
    signs = [rng.choice([-1, 0, 1], n) for n in rng.integers(1, 9, 40)]
    rewards = [s * 0.5 + rng.normal(size=s.size) for s in signs]
    plus = [(i, r) for i, (rs, ss) in enumerate(zip(rewards, signs, strict=True)) for r in rs[ss > 0]]
    minus = [(i, r) for i, (rs, ss) in enumerate(zip(rewards, signs, strict=True)) for r in rs[ss < 0]]
    auc = np.mean([p > m for _, p in plus for _, m in minus])
    parts = np.zeros(40)
    for i, p in plus:
        parts[i] += (np.mean([p > m for _, m in minus]) - auc) / len(plus)
    for i, m in minus:
        parts[i] += (np.mean([p > m for _, p in plus]) - auc) / len(minus)
    got = credit_auc(rewards, signs)
    assert got.value == pytest.approx(auc)
    half = 1.959964 * np.sqrt(40 / 39 * (parts**2).sum())
    assert 0 < got.low == pytest.approx(auc - half, abs=1e-6) and 1 > got.high == pytest.approx(auc + half, abs=1e-6)


def test_auc_extremes_and_scale():
    rewards, signs = [[2.0, -1.0, 0.3], [0.1, 5.0]], [[1, -1, 0], [-1, 1]]
    assert credit_auc(rewards, signs) == Estimate(1, 1, 1)
    assert credit_auc([[-x for x in r] for r in rewards], signs).value == 0
    assert credit_auc([[0.0, 0.0]], [[1, -1]]).value == 0.5


def test_auc_ignores_order_and_monotone_scale():
    rng = np.random.default_rng(3)
    rewards = [rng.normal(size=n) for n in rng.integers(1, 9, 60)]
    signs = [rng.integers(-1, 2, r.size) for r in rewards]
    got = credit_auc(rewards, signs)
    assert credit_auc(rewards[::-1], signs[::-1]) == pytest.approx(got)
    assert credit_auc([np.exp(r) for r in rewards], signs) == pytest.approx(got)


def test_auc_interval_covers_when_tokens_of_a_response_agree():
    # every response shares one random shift, so tokens are far from independent
    rng = np.random.default_rng(7)
    signs = [np.array([1, 1, 1, -1, -1])] * 80
    truth = credit_auc([s + rng.normal(size=5) + rng.normal() for s in signs * 100], signs * 100).value
    inside = 0
    for _ in range(300):
        got = credit_auc([s + rng.normal(size=5) + rng.normal() for s in signs], signs)
        inside += got.low <= truth <= got.high
    assert 0.90 <= inside / 300 <= 0.99


def test_mean_interval_covers():
    rng = np.random.default_rng(11)
    estimates = [mean_estimate(rng.exponential(size=200)) for _ in range(400)]
    assert 0.91 <= np.mean([e.low <= 1 <= e.high for e in estimates]) <= 0.98


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_estimate([1.0]), "mean_estimate: values must be \\(n,\\) with n >= 2"),
        (lambda: mean_estimate([[1.0, 2.0]]), "got shape \\(1, 2\\)"),
        (lambda: mean_estimate([1.0, np.nan]), "values must be finite, got 1"),
        (lambda: win_rate([1, 2], [1]), "must be paired answers, got 2 and 1"),
        (lambda: win_rate([], []), "n >= 1"),
        (lambda: credit_auc([[1.0]], [[1], [-1]]), "got 1 and 2"),
        (lambda: credit_auc([[1.0, 2.0]], [[1]]), "response 0 must have one reward per sign"),
        (lambda: credit_auc([], []), "at least one response"),
        (lambda: credit_auc([[1.0, 2.0]], [[1, 0]]), "got 1 positive and 0 negative"),
        (lambda: credit_auc([[1.0, np.inf]], [[1, -1]]), "token_rewards must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
