"""Proposition C.2: choosing all actions in advance, against choosing after seeing the state."""

import pytest
import torch

from rto_fast.theory import planning
from rto_fast.theory.check import generator


@pytest.mark.parametrize("seed", [0, 500])
def test_every_claim_is_as_stated(seed):
    assert all(check.passed for check in planning.proposition_c_2(seed, 12))


def test_the_papers_instance_is_one_to_a_half():
    reward, transition, start, horizon = planning.paper_instance()
    torch.testing.assert_close(transition.sum(2), torch.ones(3, 2).double())
    assert planning.autoregressive_value(reward, transition, start, horizon) == 1.0
    assert planning.predetermined_value(reward, transition, start, horizon) == 0.5


def test_it_is_the_chance_that_makes_the_gap():
    """With the paper's coin replaced by a certain step, both are 1."""
    reward, transition, start, horizon = planning.paper_instance()
    transition[0] = torch.tensor([0.0, 1.0, 0.0])
    assert planning.autoregressive_value(reward, transition, start, horizon) == 1.0
    assert planning.predetermined_value(reward, transition, start, horizon) == 1.0


def test_one_step_gives_no_gap():
    reward, transition, start, _ = planning.random_instance(4, 3, 1, False, generator(0))
    assert planning.autoregressive_value(reward, transition, start, 1) == pytest.approx(float(reward[0].max()))
    assert planning.predetermined_value(reward, transition, start, 1) == pytest.approx(float(reward[0].max()))


@pytest.mark.parametrize("name", ["autoregressive_value", "predetermined_value"])
def test_broken_mathematics_is_noticed(monkeypatch, name):
    true = getattr(planning, name)
    monkeypatch.setattr(planning, name, lambda *m: true(*m[:3], m[3] - 1))
    assert not all(check.passed for check in planning.proposition_c_2(0, 6))
