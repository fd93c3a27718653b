"""Rewards, optimal Q-functions and shaping on small token trees, and that the checks notice broken mathematics."""

import math

import pytest
import torch

from rto_fast.theory import soft_q
from rto_fast.theory.check import generator, random_policy, random_table
from rto_fast.theory.token_tree import optimal_objective, optimal_sequence_logprobs, sequence_logprobs

SECTIONS = ["soft_value_iteration", "lemma_1", "theorem_1", "equation_4_3", "equation_5_1", "equation_13"]
true_q, true_values = soft_q.optimal_q, soft_q.values_of


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("seed", [1000, 2000])
def test_every_claim_is_as_stated(section, seed):
    checks = getattr(soft_q, section)(seed, 15)
    assert checks and all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_two_tokens_by_hand():
    """One step, r = (0, log 2), uniform pi_ref, beta = 1: Q = (-log 2, 0), V = log 3/2, pi* = (1/3, 2/3)."""
    reward, ref = [torch.tensor([[0.0, math.log(2)]]).double()], [torch.full((1, 2), math.log(0.5)).double()]
    q, values = soft_q.optimal_q(reward, ref, 1.0)
    torch.testing.assert_close(q[0], torch.tensor([[-math.log(2), 0.0]]).double())
    assert values[0].item() == pytest.approx(math.log(1.5))
    assert soft_q.optimal_policy(reward, ref, 1.0)[0].exp().flatten().tolist() == pytest.approx([1 / 3, 2 / 3])
    assert soft_q.preferences(reward)[1, 0].item() == pytest.approx(2 / 3)


def test_it_is_the_token_tree_of_the_trainer():
    g = generator(3)
    ref, dpo = random_policy(3, 4, g), random_policy(3, 4, g)
    reward, best = soft_q.implicit_reward(dpo, ref, 0.1), optimal_sequence_logprobs(ref, dpo, 0.1, 0.03)
    found = sequence_logprobs(soft_q.optimal_policy(reward, ref, 0.03))
    torch.testing.assert_close(found, best, rtol=1e-10, atol=1e-10)
    top = optimal_objective(ref, dpo, 0.1, 0.03)
    torch.testing.assert_close(soft_q.optimal_q(reward, ref, 0.03)[1][0][0], top, rtol=1e-10, atol=1e-12)


def test_a_visitation_measure_flows():
    policy = random_policy(3, 4, generator(0))
    tables = soft_q.visitation(policy)
    assert all(d.sum().item() == pytest.approx(1.0) for d in tables)
    for parent, child in zip(tables, tables[1:], strict=False):
        torch.testing.assert_close(parent.flatten(), child.sum(1))


def test_a_ranking_of_two_is_a_preference():
    reward = random_table(2, 3, generator(0))
    ranked = soft_q.ranking_logprob(reward, torch.tensor([[3, 5], [5, 3]]))
    torch.testing.assert_close(ranked.exp(), soft_q.preferences(reward)[[3, 5], [5, 3]])


def without_the_reference(reward, ref, beta):
    return true_q(reward, [torch.zeros_like(r) for r in ref], beta)


def without_the_next_value(reward, ref, beta):
    q = [r + beta * p for r, p in zip(reward, ref, strict=True)]
    return q, true_values(q, beta)


def with_a_greedy_value(q, beta):
    return [rows.max(1).values for rows in q] + [q[-1].new_zeros(q[-1].numel())]


def lost_child(q, ref, beta):
    children = true_values(q, beta)[:-1]
    return [rows - beta * r - v[:, None] for rows, r, v in zip(q, ref, children, strict=True)]


def half_shaped(reward, potential):
    return [rows + after.view_as(rows) for rows, after in zip(reward, potential[1:], strict=True)]


def wrong_sign(policy, ref, beta):
    return [beta * (r - p) for p, r in zip(policy, ref, strict=True)]


@pytest.mark.parametrize(
    ("name", "broken", "sections"),
    [
        ("optimal_q", without_the_reference, SECTIONS[:4]),
        ("optimal_q", without_the_next_value, SECTIONS),
        ("values_of", with_a_greedy_value, SECTIONS[:2]),
        ("reward_of", lost_child, ["lemma_1"]),
        ("shaped", half_shaped, ["theorem_1"]),
        ("implicit_reward", wrong_sign, ["theorem_1", "equation_4_3"]),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_broken_mathematics_is_noticed(monkeypatch, name, broken, sections):
    monkeypatch.setattr(soft_q, name, broken)
    for section in sections:
        assert not all(check.passed for check in getattr(soft_q, section)(0, 6)), section


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: soft_q.optimal_q(t, t, 0.0), "beta must be finite and > 0, got 0.0"),
        (lambda t: soft_q.optimal_q(t, t[:2], 1.0), r"ref must be \(V\^d, V\)"),
        (lambda t: soft_q.reward_of([x.float() for x in t], t, 1.0), r"q\[0\] must be float64"),
        (lambda t: soft_q.shaped(t, [torch.zeros(1)]), r"D \+ 1 = 4 tensors, got 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_table(2, 3, generator(0)))
