"""Weights of tokens whose sampler was not quite the policy."""

import math
from dataclasses import replace

import pytest
import torch

from rto_fast.config import CorrectionConfig, RTOConfig, SamplingConfig
from rto_fast.rl.mismatch import corrected
from tests.stages.test_stages import CONFIG, make_rto

KINDS = ("off", "tis", "mask")


def columns(seed: int = 0, rows: int = 1000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Advantages, log pi_old and log mu, up to 3 nats apart."""
    g = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, generator=g)
    return torch.randn(rows, generator=g), old, old - 6 * (torch.rand(rows, generator=g) - 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policys_own_answers_are_left_alone_bit_for_bit(kind):
    advantages, old, _ = columns()
    out, said = corrected(advantages, old, old.clone(), CorrectionConfig(kind, low=0.999, high=1.001, cap=1.0))
    assert torch.equal(out, advantages)
    assert float(said["sampler_gap/ess"]) == 1 and float(said["sampler_gap/max"]) == 0
    assert float(said.get("sampler_gap/cut", 0.0)) == 0


def test_weights_are_the_ratios_cut():
    advantages, old, sampled = columns()
    rho = (old.double() - sampled.double()).exp()
    tis, said = corrected(advantages, old, sampled, CorrectionConfig("tis", cap=2.0))
    torch.testing.assert_close(tis.double(), advantages * rho.clamp(max=2), rtol=1e-5, atol=1e-6)
    assert (
        float(said["sampler_gap/cut"]) == pytest.approx(float((rho > 2).float().mean()))
        and 0.1 < (rho > 2).float().mean()
    )
    mask, said = corrected(advantages, old, sampled, CorrectionConfig("mask", low=0.5, high=5.0))
    inside = (rho >= 0.5) & (rho <= 5)
    torch.testing.assert_close(mask.double(), advantages * rho * inside, rtol=1e-5, atol=1e-6)
    assert float(said["sampler_gap/cut"]) == pytest.approx(float((~inside).float().mean()), abs=1e-6)
    assert float(said["sampler_gap/ess"]) == pytest.approx(
        float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())), rel=1e-4
    )


def test_an_expectation_under_the_sampler_becomes_one_under_the_policy():
    """E_mu[w A] = E_pi[A], exactly, over every token of a distribution, where nothing is cut."""
    g = torch.Generator().manual_seed(1)
    z, advantages = torch.randn(50, generator=g, dtype=torch.float64), torch.randn(50, generator=g, dtype=torch.float64)
    policy, sampler = z.log_softmax(0), (z / 1.5).log_softmax(0)
    for config in (CorrectionConfig("tis", cap=1e6), CorrectionConfig("mask", low=0.0, high=math.inf)):
        out, _ = corrected(advantages, policy, sampler, config)
        assert float(sampler.exp() @ out) == pytest.approx(float(policy.exp() @ advantages), rel=1e-9)
    assert abs(float(sampler.exp() @ advantages - policy.exp() @ advantages)) > 1e-3


@pytest.mark.parametrize("kind, weight", [("tis", 2.0), ("mask", 0.0)])
def test_a_token_that_the_sampler_would_not_draw_is_bounded(kind, weight):
    """rho is infinite: more than any bound, and no number."""
    advantages, old = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, -1.0])
    out, said = corrected(advantages, old, torch.tensor([-1.0, -200.0]), CorrectionConfig(kind))
    assert out.tolist() == [1.0, weight]
    assert all(x.isfinite() for name, x in said.items()) and float(said["sampler_gap/cut"]) == 0.5
    assert float(said["sampler_gap/ess"]) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["tis", "mask"])
def test_a_collector_hands_out_weighted_advantages(kind):
    """Of one rollout whose sampler was 10 % too hot: the advantages without correction, times the weights."""
    config = replace(CONFIG, sampling=SamplingConfig(temperature=1.3))
    plain, _ = make_rto(config)
    answers = plain.collector.answer(0)
    without, _ = plain.collector.experience(answers, 0.05)
    stage, _ = make_rto(replace(config, correction=CorrectionConfig(kind)))
    weighted, said = stage.collector.experience(answers, 0.05)
    rho = (without.old_logprobs - torch.tensor([p for a in answers for p in a.logprobs])).exp()
    weight = rho.clamp(max=2.0) if kind == "tis" else torch.where((rho < 0.5) | (rho > 5), 0.0, rho)
    assert torch.equal(weighted.old_logprobs, without.old_logprobs) and not torch.equal(weight, torch.ones_like(weight))
    torch.testing.assert_close(weighted.advantages, without.advantages * weight)
    assert torch.equal(weighted.returns, without.returns) and 0 < float(said["sampler_gap/ess"]) < 1


def test_mistakes():
    with pytest.raises(ValueError, match="^rto.correction.low must be below rto.correction.high = 0.4, got 0.5"):
        CorrectionConfig("mask", high=0.4)
    with pytest.raises(ValueError, match="^rto.correction.kind must be off with rto.sampling.temperature 0, got 'tis'"):
        RTOConfig(sampling=SamplingConfig(temperature=0.0), correction=CorrectionConfig("tis"))
