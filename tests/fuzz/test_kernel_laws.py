"""Laws of the operators on a CPU, for the reference and the native backend, each against its definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.token_reward_gae import RewardSpec, merge_moments, token_reward_gae, token_reward_gae_reference
from rto_fast.packing import cumulative, segment_gather
from tests.fuzz.laws import SEEDS, thorough
from tests.kernels.backends import NATIVE

BACKENDS = pytest.mark.parametrize("backend", ["reference", NATIVE])
LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=5)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(2, 40))
"""Rows, hidden, vocabulary."""


def rewards_data(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    logprobs = {name: -3 * torch.rand(rows, generator=g) for name in ("old_logprobs", "ref_logprobs", "dpo_logprobs")}
    return {**logprobs, "values": torch.randn(rows, generator=g), "cu_seqlens": cumulative(lengths)}


def drawn(seed):
    """Coefficients of a reward, zeros among them."""
    g = torch.Generator().manual_seed(seed ^ 0x5EED)
    u = torch.rand(6, generator=g).tolist()
    clip = 0.05 + u[2] if u[5] < 0.7 else float("inf")
    return RewardSpec(beta_1=u[0] if u[3] < 0.9 else 0.0, beta_2=u[1] if u[4] < 0.9 else 0.0, clip=clip)


def close(got, wanted, floor=2e-5):
    return torch.allclose(got.double(), wanted.double(), rtol=floor, atol=floor)


@BACKENDS
@given(
    lengths=LENGTHS, seed=SEEDS, granularity=st.sampled_from(["token", "response"]), lam=st.sampled_from([0, 0.9, 1])
)
@thorough
def test_token_reward_gae_is_its_definition(backend, lengths, seed, granularity, lam):
    data = rewards_data(lengths, seed)
    reward = drawn(seed)._replace(granularity=granularity, gamma=1.0, lam=float(lam))
    got = token_reward_gae(**data, reward=reward, backend=backend)
    exact = token_reward_gae_reference(
        **{k: x.double() if x.is_floating_point() else x for k, x in data.items()}, reward=reward
    )
    assert all(close(x, want) for x, want in zip(got, exact, strict=True))
    # return = advantage + value; at lambda 1 it is the reward to go
    assert close(got.returns, got.advantages + data["values"])
    if lam == 1:
        bounds = data["cu_seqlens"].tolist()
        for a, b in zip(bounds[:-1], bounds[1:], strict=True):
            assert close(got.returns[a:b], got.rewards[a:b].flip(0).cumsum(0).flip(0))
    counted = [n for n in lengths if n]
    count, mean, _ = merge_moments(got.moments)
    assert int(count) == sum(counted) and (not counted or close(mean, got.advantages.mean(), 1e-4))


@BACKENDS
@given(lengths=LENGTHS, seed=SEEDS)
@thorough
def test_token_reward_gae_does_not_know_the_neighbours(backend, lengths, seed):
    data, reward = rewards_data(lengths, seed), drawn(seed)
    whole = token_reward_gae(**data, reward=reward, backend=backend)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    at = segment_gather(data["cu_seqlens"], order)
    moved = {k: x[at] for k, x in data.items() if k != "cu_seqlens"}
    moved["cu_seqlens"] = cumulative([lengths[i] for i in order])
    other = token_reward_gae(**moved, reward=reward, backend=backend)
    for name in ("rewards", "advantages", "returns"):
        assert torch.equal(getattr(other, name), getattr(whole, name)[at]), name
    assert torch.equal(other.moments, whole.moments[order])


def head_data(shape, seed):
    rows, hidden, vocabulary = shape
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(rows, hidden, generator=g), torch.randn(vocabulary, hidden, generator=g)
    return h, w, torch.randint(vocabulary, (rows,), generator=g), g


@BACKENDS
@given(shape=SHAPES, seed=SEEDS)
@thorough
def test_linear_logprob_is_a_distribution_and_splits(backend, shape, seed):
    h, w, target, _ = head_data(shape, seed)
    logprobs = linear_logprob(h, w, target, backend=backend)
    wanted = (h.double() @ w.double().T).log_softmax(-1)
    assert close(logprobs, wanted.gather(1, target[:, None])[:, 0])
    every = linear_logprob(h[:1].expand(len(w), -1).contiguous(), w, torch.arange(len(w)), backend=backend)
    assert close(every.double().exp().sum(), torch.ones(()))
    # a masked row is nothing, and leaves the others what they are
    mask = torch.arange(len(h)) % 2 == 0
    masked = linear_logprob(h, w, target, mask=mask, backend=backend)
    assert (masked[~mask] == 0).all() and close(masked[mask], logprobs[mask])


@BACKENDS
@given(shape=SHAPES, seed=SEEDS, clip=st.sampled_from([0.05, 0.2, 1.0]))
@thorough
def test_ppo_head_is_its_definition(backend, shape, seed, clip):
    h, w, target, g = head_data(shape, seed)
    rows = len(h)
    logprobs = (h.double() @ w.double().T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    old = (logprobs + 0.3 * torch.randn(rows, generator=g)).float()
    advantages, weights = torch.randn(rows, generator=g), torch.rand(rows, generator=g)
    out = ppo_head(h, w, target, old, advantages, weights, clip=clip, backend=backend)
    ratio = (logprobs - old).exp()
    terms = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)) * weights
    assert close(out.loss, terms.sum(), 1e-4) and close(out.logprobs, logprobs)


@BACKENDS
@given(pairs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4), seed=SEEDS)
@thorough
def test_preference_head_is_antisymmetric(backend, pairs, seed):
    lengths = [a for a, _ in pairs] + [b for _, b in pairs]
    h, w, target, g = head_data((sum(lengths), 5, 11), seed)
    ref_logprobs = torch.randn(len(lengths), generator=g)
    one = preference_head(h, w, target, cumulative(lengths), ref_logprobs, beta=0.3, backend=backend)
    swapped = [*range(len(pairs), len(lengths)), *range(len(pairs))]
    at = segment_gather(cumulative(lengths), swapped)
    offsets = cumulative([lengths[i] for i in swapped])
    other = preference_head(h[at], w, target[at], offsets, ref_logprobs[swapped], beta=0.3, backend=backend)
    assert close(other.margins, -one.margins) and close(other.logprobs, one.logprobs[swapped])
    sigmoid = torch.nn.functional.logsigmoid
    assert close(one.loss, -sigmoid(one.margins.double()).sum())
