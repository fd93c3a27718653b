"""token_reward_gae against a Python loop over every row and against padded, vectorised torch.

    python -m pytest bench/bench_token_reward_gae.py

Each rival's advantages are compared with the loop's in float64 before anything is timed. Lengths are uniform in
1 ... longest, as after sampling with an end token, so the padded rival computes about twice as many rows.
"""

import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rto_fast.kernels.token_reward_gae import token_reward_gae, token_reward_gae_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPE = dict(beta_1=0.05, beta_2=0.01, clip=0.05)
GAMMA, LAM = 1.0, 0.95


def rollout(num_sequences, longest):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (num_sequences,), generator=g).tolist()
    rows = [torch.randn(sum(lengths), generator=g).to(DEVICE) for _ in range(4)]
    return [*rows, torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)], lengths


def by_loop(rows, lengths):
    return token_reward_gae_reference(*rows, **RECIPE, gamma=GAMMA, lam=LAM).advantages


def by_padding(rows, lengths):
    """(S, A) tensors, one step for each column; padding the packed rows is part of the price."""
    logprobs, ref, dpo, values = (pad_sequence(x.split(lengths), batch_first=True) for x in rows[:4])
    mask = torch.arange(values.shape[1], device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
    dense = (RECIPE["beta_1"] * (dpo - ref)).clamp(-RECIPE["clip"], RECIPE["clip"])
    delta = (dense - RECIPE["beta_2"] * (logprobs - ref) - values) * mask
    delta[:, :-1] += GAMMA * values[:, 1:]
    advantages, carry = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        carry = delta[:, t] + GAMMA * LAM * carry
        advantages[:, t] = carry
    return advantages[mask]


def by_this(rows, lengths):
    return token_reward_gae(*rows, **RECIPE, gamma=GAMMA, lam=LAM).advantages


@pytest.mark.parametrize("shape", [(256, 24), (64, 512)], ids=["256x24", "64x512"])
@pytest.mark.parametrize("rival", [by_this, by_padding, by_loop], ids=["token_reward_gae", "padded", "python_loop"])
def test_token_reward_gae(benchmark, rival, shape):
    rows, lengths = rollout(*shape)
    small, small_lengths = rollout(8, 40)
    exact = by_loop([x.double() if x.is_floating_point() else x for x in small], small_lengths)
    torch.testing.assert_close(rival(small, small_lengths).double(), exact, rtol=1e-5, atol=1e-5)

    def run():
        out = rival(rows, lengths)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return out

    slow = rival is by_loop
    result = benchmark.pedantic(run, rounds=1 if slow else 20, warmup_rounds=0 if slow else 2)
    assert len(result) == sum(lengths) and math.isfinite(result.sum().item())
    benchmark.extra_info.update(rows=sum(lengths), longest=max(lengths), device=DEVICE)
