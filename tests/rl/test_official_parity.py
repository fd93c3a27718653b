"""The packed path against the method of RTO's published code, derived again: padded, eager, float64.

A is the longest response, S the responses; every tensor here is (S, A), responses start at column 0, and the padding
holds large numbers that the published way multiplies by a mask. Its numerical faults are not repeated: no bf16, a
coefficient of zero is zero, the last sampled token stays what it was, and the reward is paid on it.
"""

import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rto_fast.config.recipe import load_recipe
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.rto_score import RTOScore
from rto_fast.kernels.token_reward_gae import RewardSpec, merge_moments, token_reward_gae
from rto_fast.rl.losses import value_loss
from rto_fast.rl.rewards import reward_spec, whiten

PRESETS = {
    "rto_icml": dict(beta_1=0.05, beta_2=0.01, beta_3=1.0, clip=0.05),
    "rto_v1_hh": dict(beta_1=0.1, beta_2=0.03, beta_3=0.0, clip=math.inf),
    "ppo": dict(beta_1=0.0, beta_2=0.05, beta_3=1.0, clip=math.inf),
}


def padded_token_rewards(logprobs, ref_logprobs, dpo_logprobs, scores, mask, *, beta_1, beta_2, beta_3, clip):
    """r_t = clip(beta_1 (dpo - ref)) - beta_2 (pi - ref), and beta_3 clamp(score, -10, 10) on the last action."""
    dense = (beta_1 * (dpo_logprobs - ref_logprobs) * mask).clamp(-clip, clip)
    kl = (logprobs - ref_logprobs) * mask
    last = mask.sum(1, keepdim=True).long() - 1
    sparse = torch.zeros_like(logprobs).scatter(1, last, beta_3 * scores.clamp(-10, 10)[:, None])
    return dense - beta_2 * kl + sparse


def padded_gae(rewards, values, mask, *, gamma, lam):
    """Advantages and returns, column by column from the right; what follows the last action is worth 0."""
    rewards, values = rewards * mask, values * mask
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    columns = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        columns.append(next_advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def padded_whiten(advantages, mask):
    """(A - mean) / std over every action of the rollout, biased, with the variance no smaller than 1e-8."""
    count = mask.sum()
    mean = (advantages * mask).sum() / count
    variance = ((advantages - mean).square() * mask).sum() / count
    return (advantages - mean) * variance.clamp(min=1e-8).rsqrt()


def sequence_mean(x, mask):
    """The masked mean of each sequence, then the mean of the sequences."""
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def padded_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """PPO's clipped surrogate: -min(r A, clip(r, 1 - e, 1 + e) A)."""
    ratio = (logprobs - old_logprobs).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return sequence_mean(-surrogate, mask)


def padded_value_loss(values, old_values, returns, mask, *, clip=0.2):
    """0.5 max((V - R)^2, (V_old + clip(V - V_old, -e, e) - R)^2); clip=None leaves the first alone."""
    loss = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.max(loss, (near - returns).square())
    return 0.5 * sequence_mean(loss, mask)


def ragged(seed, *names):
    """Random packed float64 rows by name, their lengths, and pad: packed rows -> (S, A) with garbage outside mask."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (9,), generator=g).tolist()
    lengths[2] = 1
    rows = {name: torch.randn(sum(lengths), generator=g, dtype=torch.float64) for name in names}

    def pad(packed, value=1e3):
        return pad_sequence(packed.split(lengths), batch_first=True, padding_value=value)

    return rows, lengths, pad, pad(torch.ones(sum(lengths), dtype=torch.float64), 0.0)


def packed_of(padded, mask):
    return padded[mask.bool()]


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("gamma", [1.0, 0.98])
def test_rewards_advantages_returns_and_whitening(preset, gamma, backend):
    names = ("old_logprobs", "ref_logprobs", "dpo_logprobs", "values")
    rows, lengths, pad, mask = ragged(len(preset), *names)
    for name in names[:3]:
        rows[name] = -rows[name].abs() * 2
    rows = {k: v.float().double() for k, v in rows.items()}  # both ways start from the same float32 numbers
    scores = torch.tensor([14.0, -0.5, 2.0, -11.5, 0.0, 3.0, 1.0, -2.0, 9.0], dtype=torch.float64)

    logprobs, ref, dpo, values = (pad(rows[name]) for name in names)
    rewards = padded_token_rewards(logprobs, ref, dpo, scores, mask, **PRESETS[preset])
    advantages, returns = padded_gae(rewards, values, mask, gamma=gamma, lam=0.95)
    white = padded_whiten(advantages, mask)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    got = token_reward_gae(
        *(rows[name].float().to(device) for name in names),
        torch.tensor([0, *lengths], device=device).cumsum(0).int(),
        RewardSpec(**PRESETS[preset], scores=scores.float().to(device), gamma=gamma),
        backend=backend,
    )
    count, mean, variance = merge_moments(got.moments)
    got_white = (got.advantages - mean) * variance.clamp(min=1e-8).rsqrt()
    assert count == sum(lengths)
    pairs = ((got.rewards, rewards), (got.advantages, advantages), (got.returns, returns), (got_white, white))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.cpu().double(), packed_of(theirs, mask), rtol=1e-5, atol=1e-5)


def test_policy_loss():
    """ppo_head's sum over packed rows, weighted by 1/len and divided by S, is the mean of the sequences' means."""
    names = ("old_logprobs", "advantages")
    rows, lengths, pad, mask = ragged(1, *names)
    num_rows, vocab, width = sum(lengths), 23, 8
    g = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, width, generator=g).requires_grad_() for n in (num_rows, vocab))
    target = torch.randint(vocab, (num_rows,), generator=g)

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logprobs = (exact[0] @ exact[1].T).log_softmax(1).gather(1, target[:, None])[:, 0]
    # about half of the ratios leave 1 +- 0.2
    rows["old_logprobs"] = (logprobs.detach() + 0.3 * rows["old_logprobs"]).float().double()
    rows["advantages"] = rows["advantages"].float().double()
    padded = padded_policy_loss(pad(logprobs), pad(rows["old_logprobs"], 999.0), pad(rows["advantages"]), mask)
    padded.backward()

    weights = torch.cat([torch.full((n,), 1 / n) for n in lengths])
    mine = ppo_head(hidden, weight, target, *(rows[n].float() for n in names), weights).loss / len(lengths)
    mine.backward()
    torch.testing.assert_close(mine.double(), padded, rtol=1e-5, atol=1e-5)
    for got, want in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_value_loss(clip):
    names = ("values", "old_values", "returns")
    rows, lengths, pad, mask = ragged(2, *names)
    values = rows["values"].clone().requires_grad_()
    padded = padded_value_loss(*(pad(rows[n]) for n in names), mask, clip=None if clip == math.inf else clip)
    weights = torch.cat([torch.full((n,), 1 / n) for n in lengths])
    mine = value_loss(values.float(), *(rows[n].float() for n in names[1:]), weights, clip) / len(lengths)
    torch.testing.assert_close(mine.double(), padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["rto_icml", "rto_v1_hh"])
def test_the_trainers_rewards_and_whitening(preset):
    """reward_spec and whiten, as the RTO stage calls them, against the padded derivation."""
    names = ("old_logprobs", "ref_logprobs", "dpo_logprobs", "values")
    rows, lengths, pad, mask = ragged(5, *names)
    rows = {name: row.float().double() for name, row in rows.items()}
    sentence = torch.linspace(-12, 12, len(lengths), dtype=torch.float64)
    logprobs, ref, dpo, values = (pad(rows[n]) for n in names)
    rewards = padded_token_rewards(logprobs, ref, dpo, sentence, mask, **PRESETS[preset])
    advantages, returns = padded_gae(rewards, values, mask, gamma=1.0, lam=0.95)

    reward = load_recipe(preset).rto.reward
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    columns = [rows[n].float() for n in names]
    spec = reward_spec(reward, beta_2=reward.beta_2, gamma=1.0, lam=0.95, sentence_scores=sentence.float())
    out = token_reward_gae(*columns, offsets, spec)
    white = whiten(RTOScore(*columns, *out))
    wanted = (rewards, padded_whiten(advantages, mask), returns)
    for mine, theirs in zip((out.rewards, white, out.returns), wanted, strict=True):
        torch.testing.assert_close(mine.double(), packed_of(theirs, mask), rtol=1e-5, atol=1e-5)
