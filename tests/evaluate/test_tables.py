"""Matrices of who beats whom, by scores and by verdicts of which some are missing."""

import numpy as np
import pytest

from rto_fast.evaluate.policies import Evaluation, win_rates
from rto_fast.evaluate.stats import mean_estimate
from rto_fast.evaluate.tables import differences, matrices, outcomes, print_results, print_table, share_won
from rto_fast.files.text import in_columns
from rto_fast.rollout import Completion

NAN = float("nan")


def evaluation(oracle: list[float], lengths: list[int]) -> Evaluation:
    answers = [Completion([1], [5] * n, [0.0] * n, "length") for n in lengths]
    zeros = np.zeros(len(oracle))
    return Evaluation(answers, kl=zeros, implicit=zeros, oracle=np.array(oracle))


@pytest.fixture
def three() -> dict[str, Evaluation]:
    return {
        "a": evaluation([3, 3, 1, 0], [4, 5, 6, 7]),
        "b": evaluation([1, 3, 2, -1], [4, 4, 4, 4]),
        "c": evaluation([0, 0, 0, 0], [3, 4, 5, 9]),
    }


def test_outcomes_by_score(three):
    got = outcomes(three)
    assert list(got) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert got["a", "b"].tolist() == [1, 0.5, 0, 1]
    assert share_won(got, three)["a"].tolist() == [1, 0.75, 0.5, 0.75]


def test_the_win_rates_are_those_of_a_run(three):
    got, run = matrices(outcomes(three), three)["win_rate"], win_rates(three)
    for a, b in (("a", "b"), ("c", "a"), ("b", "c")):
        assert {k: got[a][b][k] for k in ("mean", "ci95")} == pytest.approx(run[a][b])
        assert got[a][b]["low"] == pytest.approx(1 - got[b][a]["high"])


def test_a_policy_alone_has_won_no_share(three):
    alone = {"a": three["a"]}
    np.testing.assert_equal(share_won(outcomes(alone), alone)["a"], np.full(4, NAN))


def test_columns_are_as_wide_as_their_widest_cell():
    assert in_columns([["", "b", "c"], ["long", "1", ""], ["x", "", "22"]]) == [
        "        b  c",
        "  long  1",
        "  x        22",
    ]


def test_differences_are_paired(three):
    want = mean_estimate([2, 0, -1, 1])
    assert differences(three)["a"]["b"] == pytest.approx({"mean": want.value, "ci95": want.ci95})


def test_missing_verdicts_are_left_out_and_never_ties(three):
    found = {
        ("a", "b"): np.array([1, NAN, NAN, 1]),
        ("a", "c"): np.full(4, NAN),
        ("b", "c"): np.array([0.5, 0, NAN, 1]),
    }
    got = matrices(found, three)
    assert got["win_rate"]["a"]["b"]["mean"] == 1 and got["win_rate"]["b"]["a"]["mean"] == 0
    assert got["win_rate"]["b"]["c"]["mean"] == 0.5
    assert "c" not in got["win_rate"]["a"] and "a" not in got["length_controlled"]["c"]
    shares = share_won(found, three)
    np.testing.assert_equal(shares["a"], [1, NAN, NAN, 1])
    np.testing.assert_equal(shares["b"], [0.25, 0, NAN, 0.5])
    said = []
    print_results({"policies": {n: e.summary() for n, e in three.items()}, **got}, said.append)
    row = next(line for line in said if line.startswith("  a ") and "to" in line)
    assert row.count("(") == 1  # only against b


def test_the_terminals_table_says_what_its_intervals_cover(three):
    results = {
        "policies": {n: e.summary() for n, e in three.items()},
        "win_rate": win_rates(three),
        "judge": "oracle_return",
    }
    said = []
    print_table(results, said.append)
    assert any("covers the prompts, given these trained models" in line for line in said)
    for policy in results["policies"].values():
        for figure in policy.values():
            if isinstance(figure, dict):
                figure |= {"low": figure["mean"] - 0.5, "high": figure["mean"] + 0.25, "seeds": 3}
    said.clear()
    print_table(results, said.append)
    assert any("covers training and prompts (3 seeds)" in line for line in said)
    row = next(line for line in said if line.startswith("  a "))
    assert row.count(" to ") == 1 and "1.750 +- " in row and "(1.250 to 2.000)" in row
