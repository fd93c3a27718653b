"""The constrained maximum likelihood fit, Algorithm 1 and Theorem 4.2."""

import math
from dataclasses import replace

import pytest
import torch

from rto_fast.theory import linear_reward, pessimism
from rto_fast.theory.check import generator
from rto_fast.theory.linear_reward import Pairs, fit, fit_gap, negative_loglik, random_problem, sample_pairs
from rto_fast.theory.pessimism import DELTA, RIDGE, draws, problems
from rto_fast.theory.soft_q import optimal_policy, policy_q, returns


def small(seed, norm=1.0, dim=3):
    g = generator(seed)
    return random_problem(2, 3, dim, g, beta=0.1, largest=0.25, norm=norm), g


@pytest.mark.parametrize("section", ["lemma_a_1", "theorem_4_2"])
def test_every_claim_is_as_stated(section):
    checks = getattr(pessimism, section)(0, 15)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]


def test_a_problem_keeps_its_bounds():
    problem, _ = small(0)
    assert max(float(phi.norm(dim=-1).max()) for phi in problem.features) == pytest.approx(0.25)
    assert float(problem.theta.norm()) == pytest.approx(0.5)
    answers = problem.answers()
    torch.testing.assert_close(answers @ problem.theta, returns(problem.reward(problem.theta)))
    z = 2 * 3 * 0.25 * 1.0
    assert float((answers[:, None] - answers).norm(dim=2).max()) <= z
    slope = torch.tensor(z).double().sigmoid()
    assert problem.flatness() == pytest.approx(float(slope * (1 - slope)))


def test_preferences_are_drawn_by_bradley_terry():
    problem, g = small(3, norm=8.0)
    short, pairs = sample_pairs(problem, [100, 400_000], g)
    assert short.counts.sum() == 100 and pairs.counts.sum() == 400_000
    z = pairs.differences @ problem.theta
    # among pairs with margin |z|, the better answer wins sigmoid(|z|) of the time
    won, expected = pairs.counts[z > 1e-9].sum(), (pairs.counts * z.abs().sigmoid())[z.abs() > 1e-9].sum()
    assert float(won) == pytest.approx(float(expected), rel=5e-3)
    close = torch.linalg.norm(fit(pairs, 100.0) - problem.theta)
    assert float(close) < 0.1


def test_the_loglikelihoods_derivatives_are_its_derivatives():
    problem, g = small(1)
    pairs = sample_pairs(problem, [50], g)[0]
    theta = torch.randn(3, generator=g, dtype=torch.float64).requires_grad_()
    value, gradient, hessian = negative_loglik(pairs, theta)
    torch.testing.assert_close(torch.autograd.grad(value, theta)[0], gradient.detach())
    wanted = torch.autograd.functional.hessian(lambda t: negative_loglik(pairs, t)[0], theta.detach())
    torch.testing.assert_close(wanted, hessian.detach())


@pytest.mark.parametrize("norm", [0.3, 1.0, 30.0])
def test_the_fit_is_the_best_in_the_ball(norm):
    problem, g = small(2)
    pairs = sample_pairs(problem, [40], g)[0]
    theta = fit(pairs, norm)
    assert float(theta.norm()) <= norm * (1 + 1e-12)
    assert 0 <= fit_gap(pairs, theta, norm) + 1e-12 < 1e-9
    best = negative_loglik(pairs, theta)[0]
    others = torch.nn.functional.normalize(torch.randn(500, 3, generator=g, dtype=torch.float64), dim=1)
    others = others * norm * torch.rand(500, 1, generator=g, dtype=torch.float64)
    assert all(negative_loglik(pairs, other)[0] >= best for other in others)
    assert all(negative_loglik(pairs, theta + 1e-3 * (o - theta))[0] >= best for o in others)


def test_data_that_leave_the_fit_free_or_infinite():
    one = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    # always won: without the ball theta would run away along the only direction seen
    theta = fit(Pairs(one, torch.tensor([10.0]).double()), 2.0)
    torch.testing.assert_close(theta, torch.tensor([2.0, 0.0]).double(), rtol=1e-9, atol=1e-9)
    nothing = fit(Pairs(torch.zeros(1, 2).double(), torch.tensor([7.0]).double()), 2.0)
    assert nothing.tolist() == [0.0, 0.0]
    # won 3 times of 4: log 3 nats
    both = fit(Pairs(torch.cat([one, -one]), torch.tensor([3.0, 1.0]).double()), 100.0)
    torch.testing.assert_close(both, torch.tensor([2 * math.log(3), 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_covariance_is_that_of_the_pairs():
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double()
    got = Pairs(x, torch.tensor([3.0, 2.0]).double()).covariance(0.5)
    torch.testing.assert_close(got, torch.tensor([[3.5, 6.0], [6.0, 14.5]]).double())


def test_widths_are_mahalanobis_lengths():
    problem, g = small(4)
    covariance = sample_pairs(problem, [64], g)[0].covariance(1.0)
    phi = problem.features[2][3, 1]
    got = pessimism.widths(problem, covariance)[2][3, 1]
    assert float(got**2) == pytest.approx(float(phi @ torch.linalg.solve(covariance, phi)))


def test_sub_optimality_is_a_difference_of_values():
    problem, g = small(5)
    reward = problem.reward(problem.theta)
    policy = optimal_policy(problem.reward(torch.randn(3, generator=g, dtype=torch.float64)), problem.ref, 0.1)
    best = optimal_policy(reward, problem.ref, 0.1)
    values = [policy_q(pi, reward, problem.ref, 0.1)[1][0] for pi in (best, policy)]
    assert pessimism.sub_optimality(problem, policy) == pytest.approx(float(values[0] - values[1]), abs=1e-12)
    assert pessimism.sub_optimality(problem, best) == pytest.approx(0.0, abs=1e-12)


def test_the_theorem_needs_its_event():
    """With rho = 0 the right-hand side is -beta KL < 0: the bound cannot hold, and Lemma A.1's event does not."""
    problem, g = next(problems(0, 1))
    draw = draws(problem, [64], g)[0]
    outcome = pessimism.algorithm_1(problem, draw.theta, draw.covariance, 0.0)
    assert draw.error > 0 and outcome.lost > outcome.bound


def test_without_error_nothing_is_lost():
    problem, g = next(problems(1, 1))
    covariance = draws(problem, [64], g)[0].covariance
    outcome = pessimism.algorithm_1(problem, problem.theta, covariance, 0.0)
    assert abs(outcome.lost) < 1e-12 and abs(outcome.bound) < 1e-12


true_widths, true_fit, true_a1 = pessimism.widths, linear_reward.fit, pessimism.algorithm_1


def optimistic(problem, theta, covariance, rho):
    fitted, uncertain = problem.reward(theta), true_widths(problem, covariance)
    return [rows + rho * width for rows, width in zip(fitted, uncertain, strict=True)]


@pytest.mark.parametrize(
    ("module", "name", "broken", "section"),
    [
        (pessimism, "fit", lambda pairs, norm: -true_fit(pairs, norm), "lemma_a_1"),
        (pessimism, "fit", lambda pairs, norm: true_fit(pairs, 1e3), "lemma_a_1"),
        (pessimism, "radius", lambda problem, ridge, delta: 1.0, "lemma_a_1"),
        (pessimism, "radius", lambda problem, ridge, delta: 0.02, "theorem_4_2"),
        (pessimism, "widths", lambda p, c: true_widths(p, torch.linalg.inv(c)), "theorem_4_2"),
        (pessimism, "pessimistic_reward", optimistic, "theorem_4_2"),
        (
            pessimism,
            "algorithm_1",
            lambda *a: replace(true_a1(*a), coverage=true_a1(*a).coverage / 40),
            "theorem_4_2",
        ),
    ],
)
def test_broken_mathematics_is_noticed(monkeypatch, module, name, broken, section):
    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(pessimism, "problems", lambda seed, count: problems(seed, min(count, 2)))
    assert not all(check.passed for check in getattr(pessimism, section)(0, 6))


def test_rho_grows_with_confidence_dimension_and_scale():
    problem, _ = small(0)
    at = linear_reward.radius(problem, RIDGE, DELTA)
    assert at < linear_reward.radius(problem, RIDGE, DELTA / 10)
    assert at < linear_reward.radius(small(0, dim=5)[0], RIDGE, DELTA)
    assert at < linear_reward.radius(replace(problem, norm=2.0), RIDGE, DELTA)
    assert linear_reward.radius(problem, 4.0, DELTA) - at == pytest.approx(2.0)
