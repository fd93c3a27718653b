"""token_reward_gae against a Python loop over every row and against padded, vectorised torch.

    python -m pytest bench/bench_token_reward_gae.py

Each rival's advantages are compared with the loop's in float64 before anything is timed. Lengths are ragged, as after
sampling with an end token, so the padded rival computes more rows than there are.
"""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from bench.record import DEVICE, beside
from bench.shapes import offsets
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae, token_reward_gae_reference

REWARD = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05, gamma=1.0, lam=0.95)
ROWS = 32768
# four columns in, three out
BYTES_PER_ROW = 28


def rollout(cu_seqlens):
    g = torch.Generator().manual_seed(0)
    rows = int(cu_seqlens[-1])
    return [*(torch.randn(rows, generator=g).to(DEVICE) for _ in range(4)), cu_seqlens.to(DEVICE)]


def by_loop(rows, lengths):
    return token_reward_gae_reference(*rows, REWARD).advantages


def by_padding(rows, lengths):
    """(S, A) tensors, one step for each column; padding the packed rows is part of the price."""
    old, ref, dpo, values = (pad_sequence(x.split(lengths), batch_first=True) for x in rows[:4])
    mask = torch.arange(values.shape[1], device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
    dense = (REWARD.beta_1 * (dpo - ref)).clamp(-REWARD.clip, REWARD.clip)
    delta = (dense - REWARD.beta_2 * (old - ref) - values) * mask
    delta[:, :-1] += REWARD.gamma * values[:, 1:]
    advantages, carry = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        carry = delta[:, t] + REWARD.gamma * REWARD.lam * carry
        advantages[:, t] = carry
    return advantages[mask]


def by_this(rows, lengths):
    return token_reward_gae(*rows, REWARD).advantages


def cut(rows, sequences):
    """Offsets of random sequences; none is longer than eight times the mean, as with a limit on new tokens."""
    if sequences == 1:
        return torch.tensor([0, rows]).int()
    g = torch.Generator().manual_seed(1)
    lengths = 0.1 + torch.rand(sequences, generator=g)
    edges = (lengths.cumsum(0) / lengths.sum() * rows).round().int()
    return torch.cat((torch.zeros(1).int(), edges))


def check(rival):
    small = offsets(300, 9, "cpu")
    rows, lengths = rollout(small), small.diff().tolist()
    exact = by_loop([x.double() if x.is_floating_point() else x for x in rows], lengths)
    torch.testing.assert_close(rival(rows, lengths).double(), exact, rtol=1e-5, atol=1e-5)


RIVALS = {"rto_fast": by_this, "padded torch": by_padding, "python loop": by_loop}


@pytest.mark.parametrize("sequences", [64, 1365], ids=["512 rows each", "24 rows each"])
@pytest.mark.parametrize("name", RIVALS)
def test_token_reward_gae(benchmark, name, sequences):
    """32,768 rows, every rival beside ours: its speed-up is how many times faster ours is."""
    check(RIVALS[name])
    cu_seqlens = cut(ROWS, sequences)
    rows, lengths = rollout(cu_seqlens), cu_seqlens.diff().tolist()
    slow = name == "python loop"
    ratio = beside(
        benchmark,
        lambda: RIVALS[name](rows, lengths),
        lambda: by_this(rows, lengths),
        rival=name,
        shape=f"{ROWS} rows, {sequences} sequences",
        of="rto_fast",
        rounds=2 if slow else 30,
        moved=BYTES_PER_ROW * ROWS,
        memory=not slow,
    )
    print(f"\n{name}, {sequences} sequences: {ratio:.1f} x the time of rto_fast")


@pytest.mark.parametrize("sequences", [1, 16, 256, 4096])
def test_growth_with_the_number_of_sequences(benchmark, sequences):
    cu_seqlens = cut(ROWS, sequences)
    rows, lengths = rollout(cu_seqlens), cu_seqlens.diff().tolist()
    source = torch.empty(ROWS * BYTES_PER_ROW // 8, device=DEVICE)
    sink = torch.empty_like(source)
    beside(
        benchmark,
        lambda: by_this(rows, lengths),
        lambda: sink.copy_(source),
        rival="rto_fast",
        shape=f"{ROWS} rows, {sequences} sequences",
        of="a copy",
        rounds=30,
        moved=BYTES_PER_ROW * ROWS,
        memory=False,
        growth="sequences",
        size=sequences,
    )
