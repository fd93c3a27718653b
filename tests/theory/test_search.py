"""Proposition 3.2's search, its bounds, and the games that no learner wins faster."""

import math

import pytest
import torch

from rto_fast.theory import search
from rto_fast.theory.check import generator, random_policy
from rto_fast.theory.token_tree import conditionals_of, prefixes, sequence_logprobs

true_search, true_frontier = search.token_search, search.frontier


@pytest.mark.parametrize("seed", [0, 500])
def test_every_claim_is_as_stated(seed):
    checks = search.proposition_3_2(seed, 20)
    assert len(checks) == 9 and all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_the_number_of_queries_does_not_depend_on_their_order():
    best = random_policy(3, 4, generator(1), scale=2.0)
    xi = search.smallest_xi(best)
    first = search.token_search(search.asker(best), 3, 4, xi)
    assert all(search.token_search(search.asker(best), 3, 4, xi, generator(s)) == first for s in range(5))


def test_the_learner_asks_no_answer_twice_and_sees_rewards_alone():
    best, asked = random_policy(2, 5, generator(4), scale=3.0), []

    def ask(path):
        asked.append(path)
        return search.asker(best)(path)

    answer, queries = search.token_search(ask, 2, 5, search.smallest_xi(best), generator(0))
    assert len(asked) == len(set(asked)) == queries
    assert answer == tuple(prefixes(2, 5)[int(sequence_logprobs(best).argmax())].tolist())


def test_a_larger_xi_costs_more_and_a_smaller_one_finds_nothing():
    best = random_policy(3, 4, generator(2), scale=2.0)
    xi = search.smallest_xi(best)
    answer, queries = search.token_search(search.asker(best), 3, 4, xi)
    assert search.token_search(search.asker(best), 3, 4, xi + 0.7)[0] == answer
    assert search.token_search(search.asker(best), 3, 4, xi + 2.0)[1] > queries
    assert search.token_search(search.asker(best), 3, 4, xi - 0.1)[0] is None
    assert search.token_search(search.asker(best), 3, 4, 4.0)[1] <= 3**4


def test_the_bound_is_reached():
    """The first xi levels even, then one heavy child each: every term of the sum is met."""
    vocab, depth, xi = 2, 5, 2.0
    table = torch.full((4, 8), 1e-9, dtype=torch.float64)
    table[:, 0] = 0.25 - 7e-9
    best = conditionals_of(table.flatten().log(), vocab)
    loose = xi + 1e-6
    assert search.level_bound(vocab, depth, xi) == 1 + 1 + 2 + 4 + 4 + 4
    assert search.token_search(search.asker(best), vocab, depth, loose)[1] == search.level_bound(vocab, depth, xi)
    assert search.printed_bound(vocab, depth, xi) == 8


def test_a_game_by_hand():
    """Four instances: hit or miss takes three questions, halving takes two."""
    assert search.best_worst_case([[i == j for j in range(4)] for i in range(4)]) == 3
    assert search.best_worst_case([[0, 0, 1, 1], [0, 1, 0, 1]]) == 2


def test_a_needle_is_a_distribution_with_its_answer_on_top():
    table = search.needle(3, 3, answer=14)
    assert table.exp().sum().item() == pytest.approx(1.0) and table.argmax() == 14
    assert search.smallest_xi(conditionals_of(table, 3)) == pytest.approx(-math.log(0.99) / math.log(3))


def asks_once_too_often(ask, vocab, depth, xi, g=None):
    answer, queries = true_search(ask, vocab, depth, xi, g)
    return answer, queries + 1


def last_answer(ask, vocab, depth, xi, g=None):
    return (vocab - 1,) * depth, true_search(ask, vocab, depth, xi, g)[1]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("token_search", asks_once_too_often),
        ("token_search", last_answer),
        ("frontier", lambda best, xi: (true_frontier(best, xi)[0], 0)),
        ("level_bound", lambda vocab, depth, xi: math.floor(vocab ** (xi + 1))),
        ("needle_game", lambda vocab, depth, token_rewards: vocab**depth),
        ("smallest_xi", lambda best: 0.0),
    ],
)
def test_broken_mathematics_is_noticed(monkeypatch, name, broken):
    monkeypatch.setattr(search, name, broken)
    assert not all(check.passed for check in search.proposition_3_2(0, 10))
