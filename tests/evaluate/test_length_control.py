"""Length-controlled win rates against figures worked out by hand and against simulation."""

import numpy as np
import pytest

from rto_fast.evaluate.stats import length_controlled, win_rate


def logistic(z):
    return 1 / (1 + np.exp(-z))


def test_without_a_difference_of_length_it_is_the_win_rate_with_half_a_win_and_half_a_loss_more():
    # Jeffreys' prior for one probability: (wins + 1/2) / (n + 1)
    wins = np.array([1.0] * 8 + [0.0] * 2)
    assert length_controlled(wins, np.full(10, 7), np.full(10, 7)).value == pytest.approx(8.5 / 11)
    # all answers longer by the same: the same, for length can explain nothing
    assert length_controlled(wins, np.full(10, 9), np.full(10, 7)).value == pytest.approx(8.5 / 11)


def test_swapping_the_policies_mirrors_it():
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, 90, (2, 200))
    wins = rng.choice([0, 0.5, 1], 200)
    one, other = length_controlled(wins, a, b), length_controlled(1 - wins, b, a)
    assert one.value == pytest.approx(1 - other.value)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


def test_it_maximises_the_penalised_likelihood():
    rng = np.random.default_rng(1)
    a, b = rng.integers(5, 90, (2, 80))
    wins = (rng.random(80) < logistic(0.4 + 1.5 * np.tanh((a - b) / (a - b).std()))).astype(float)
    x = np.stack([np.ones(80), np.tanh((a - b) / (a - b).std())], 1)

    def objective(beta):
        p = logistic(x @ beta)
        fisher = (x * (p * (1 - p))[:, None]).T @ x
        return (wins * np.log(p) + (1 - wins) * np.log(1 - p)).sum() + 0.5 * np.log(np.linalg.det(fisher))

    grid = np.linspace(-3, 4, 141)
    best = max(((objective(np.array([t, f])), t) for t in grid for f in grid), key=lambda pair: pair[0])[1]
    got = length_controlled(wins, a, b).value
    assert np.log(got / (1 - got)) == pytest.approx(best, abs=0.051)


def test_a_judge_that_loves_length_is_seen_through():
    # two equal policies, one of which talks more: it wins, but not at equal length
    rng = np.random.default_rng(2)
    b = rng.integers(20, 120, 600)
    a = b + rng.integers(-20, 61, 600)
    difference = a - b
    wins = (rng.random(600) < logistic(2 * np.tanh(difference / difference.std()))).astype(float)
    raw, controlled = win_rate(wins, 1 - wins), length_controlled(wins, a, b)
    assert raw.low > 0.55
    assert controlled.low < 0.5 < controlled.high


def test_its_interval_covers():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        a, b = rng.integers(5, 90, (2, 150))
        wins = (rng.random(150) < logistic(0.7 + np.tanh((a - b) / (a - b).std()))).astype(float)
        got = length_controlled(wins, a, b)
        inside += got.low <= logistic(0.7) <= got.high
    assert 0.92 <= inside / 300 <= 0.98


@pytest.mark.parametrize("wins", [np.ones(50), np.zeros(50), None])
def test_it_stays_finite_where_one_side_wins_always_or_length_tells_the_winner(wins):
    lengths = np.arange(50.0)
    got = length_controlled((lengths > 25) if wins is None else wins, lengths, np.full(50, 25.0))
    assert 0 < got.low < got.value < got.high < 1


@pytest.mark.parametrize(
    ("wins", "a", "b", "message"),
    [
        ([1, 0], [1], [1, 2], "must be \\(n,\\), got \\(2,\\), \\(1,\\), \\(2,\\)"),
        ([], [], [], "must be \\(n,\\)"),
        ([1, np.nan], [1, 2], [1, 2], "leave unjudged answers out"),
        ([1, 2], [1, 2], [1, 2], "wins in \\[0, 1\\]"),
    ],
)
def test_bad_input_is_named(wins, a, b, message):
    with pytest.raises(ValueError, match=message):
        length_controlled(wins, a, b)
