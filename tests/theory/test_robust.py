"""Variant B.1: the game between the policy and the reward is solved, with a certificate."""

import pytest
import torch

from rto_fast.theory import robust
from rto_fast.theory.check import generator, random_policy
from rto_fast.theory.linear_reward import random_problem, sample_pairs
from rto_fast.theory.pessimism import draws, problems
from rto_fast.theory.robust import ConfidenceSet, variant_b1, worst_value
from rto_fast.theory.soft_q import optimal_policy

true_b1, true_lowest = robust.variant_b1, ConfidenceSet.lowest


def allowed(rho, norm=1.0):
    """A set whose ball and ellipsoid cut one another for a middling rho."""
    covariance = torch.tensor([[9.0, 3.0], [3.0, 2.0]], dtype=torch.float64)
    return ConfidenceSet(torch.tensor([0.6, -0.5], dtype=torch.float64), covariance, rho, norm)


def test_every_claim_is_as_stated():
    checks = robust.theorem_b_1(0, 15)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


@pytest.mark.parametrize("rho", [1e-3, 0.3, 1.0, 2.0, 10.0])
def test_the_lowest_reward_is_that_of_a_fine_grid(rho):
    theta = allowed(rho)
    axis = torch.linspace(-1, 1, 1601, dtype=torch.float64)
    if rho < 0.1:
        grid = theta.center + torch.cartesian_prod(axis, axis) * 3 * rho
    else:
        grid = torch.cartesian_prod(axis, axis)
    off = grid - theta.center
    inside = (grid.norm(dim=1) <= theta.norm) & (((off @ theta.covariance) * off).sum(1) <= rho**2)
    for angle in torch.linspace(0, 6.2, 9, dtype=torch.float64):
        direction = torch.stack([angle.cos(), angle.sin()])
        want, got = float((grid[inside] @ direction).min()), float(theta.lowest(direction))
        assert got <= want + 1e-12 and want - got < 5e-3 * min(1.0, 3 * rho)


def test_both_constraints_bind_somewhere():
    theta, direction = allowed(0.8), torch.tensor([-0.2, 1.0], dtype=torch.float64)
    ends = [theta._ellipsoid(direction, w)[0] for w in (0.0, 1.0)]
    assert theta.lowest(direction) > max(ends) + 1e-3


@pytest.mark.parametrize("rho", [0.05, 0.5, 5.0])
def test_no_other_policy_has_a_better_worst_case(rho):
    g = generator(7)
    problem = random_problem(2, 3, 2, g, beta=0.1, largest=0.5, norm=1.0)
    pairs = sample_pairs(problem, [64], g)[0]
    theta = ConfidenceSet(torch.tensor([0.6, -0.5]).double(), pairs.covariance(1.0), rho, 1.0)
    result = variant_b1(problem, theta)
    assert -1e-10 < result.gap < 1e-10
    assert max(float(e) for e in theta.excess(result.theta)) <= 0
    for step in (1.0, 0.1, 1e-3):
        for _ in range(20):
            noise = random_policy(2, 3, g)
            other = [(p + step * n).log_softmax(1) for p, n in zip(result.policy, noise, strict=True)]
            assert worst_value(problem, other, theta) <= result.worst + 1e-10


def test_a_certain_reward_leaves_plain_planning():
    problem, g = next(problems(3, 1))
    draw = draws(problem, [256], g)[0]
    result = variant_b1(problem, ConfidenceSet(draw.theta, draw.covariance, 1e-7, 1.0))
    plain = optimal_policy(problem.reward(draw.theta), problem.ref, problem.beta)
    for got, want in zip(result.policy, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_an_empty_set_is_refused():
    problem, _ = next(problems(0, 1))
    eye = torch.eye(4, dtype=torch.float64)
    for center, rho in ((2 * eye[0], 1.0), (0 * eye[0], 0.0)):
        with pytest.raises(ValueError, match=r"Theta needs rho > 0, B > 0 and \|theta_MLE\| <= B"):
            variant_b1(problem, ConfidenceSet(center, eye, rho, 1.0))


def not_robust(problem, theta):
    """Plans for theta_MLE itself, and reports its gap honestly."""
    policy = optimal_policy(problem.reward(theta.center), problem.ref, problem.beta)
    worst, best = worst_value(problem, policy, theta), true_b1(problem, theta)
    return robust.Robust(policy, theta.center, worst, best.worst + best.gap - worst)


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        (robust, "variant_b1", not_robust),
        (ConfidenceSet, "lowest", lambda self, direction: self._ellipsoid(direction, 0.0)[0]),
        (ConfidenceSet, "lowest", lambda self, direction: true_lowest(self, direction) + 1e-3),
        (robust, "radius", lambda problem, ridge, delta: 0.02),
        (robust, "_reach", lambda draw: 0.01 * float(draw.covariance.diagonal().mean()) ** -0.5),
    ],
)
def test_broken_mathematics_is_noticed(monkeypatch, target, name, broken):
    monkeypatch.setattr(target, name, broken)
    monkeypatch.setattr(robust, "problems", lambda seed, count: problems(seed, 1))
    assert not all(check.passed for check in robust.theorem_b_1(0, 6))
