"""What an operator may cost, in ways that do not depend on the machine's speed: GEMMs, launches, bytes, ratios.

T rows, H hidden, V vocabulary. The ratios are taken within one process, each round timing both sides, and their bounds
are far above what is measured (bench/README.md), so that a busy machine passes and a lost fusion does not.
"""

import math
import os
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import peers, timing
from bench.shapes import Shape, decisions, head_inputs, offsets
from rto_fast.kernels.common import workspace
from rto_fast.kernels.common.chunked import statistics
from rto_fast.kernels.decode_attention import decode_attention
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
from tests.kernels.backends import needs_native

SHAPE = Shape("small", 256, 16384)
ROWS = 1024


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("megabytes", [None, 1, 7, 64, 1000])
@pytest.mark.parametrize("vocab", [1, 127, 50257, 151936, 1 << 22])
def test_a_tile_never_exceeds_the_workspace(device, dtype, megabytes, vocab):
    rows, columns = workspace.tile_shape(vocab, torch.device(device), dtype, megabytes)
    bound = workspace.workspace_bytes(torch.device(device), megabytes)
    assert 1 <= columns <= vocab and rows >= 1
    assert rows * columns * dtype.itemsize <= bound or rows == 1


def test_the_buffer_is_a_tile_and_flat_in_rows(monkeypatch):
    """Every buffer that the passes over the vocabulary ask torch for, at T x 1, x 4 and x 16."""
    asked: list[int] = []
    empty = torch.empty

    def counting(*size, **options):
        out = empty(*size, **options)
        asked.append(out.numel() * out.element_size())
        return out

    largest = []
    for rows in (4096, 16384):
        hidden, weight, target = head_inputs(Shape("thin", 4, 2048), rows, "cpu", torch.float32)
        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", counting)
            linear_logprob(hidden, weight, target)
        largest.append(max(asked))
    assert largest[0] == largest[1] <= workspace.CPU_TILE_BYTES
    assert statistics.__module__ == "rto_fast.kernels.common.chunked"


def test_gemms_are_counted():
    """2 T V H forward, 6 more backward; 6 for ppo_head, 4 with a frozen head; 2 for each model of rto_score."""
    hidden, weight, target = head_inputs(SHAPE, 96, "cpu", torch.float32)
    unit = SHAPE.gemm_flops(96)
    given = decisions(linear_logprob(hidden, weight, target))
    cu_seqlens = offsets(96, 4, "cpu")

    def flops(run) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / unit

    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    logits = [FactoredLogits(hidden, weight) for _ in range(3)]
    assert flops(lambda: linear_logprob(hidden, weight, target)) == 1
    assert flops(lambda: linear_logprob(*leaves, target).sum().backward()) == 4
    assert flops(lambda: ppo_head(*leaves, target, *given, clip=math.inf).loss.backward()) == 3
    assert flops(lambda: ppo_head(leaves[0], weight, target, *given, clip=math.inf).loss.backward()) == 2
    assert flops(lambda: preference_head(*leaves, target, cu_seqlens, torch.zeros(4)).loss.backward()) == 4
    values = torch.zeros(96)
    assert flops(lambda: rto_score(*logits, target, values, cu_seqlens, RewardSpec(0.1, 0.1))) == 3


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="launches are counted under the interpreter")
def test_launches_are_counted(monkeypatch):
    """One for each tile and pass, one for each chunk of ppo_head, one for all rewards, two for attention."""
    monkeypatch.setattr(workspace, "CPU_TILE_BYTES", 4 * 8 * 128)
    monkeypatch.setattr(workspace, "CPU_TILE_COLUMNS", 128)
    from rto_fast.kernels.common import kernel as linear
    from rto_fast.kernels.decode_attention import kernel as attention
    from rto_fast.kernels.ppo_head import kernel as ppo
    from rto_fast.kernels.preference_head import kernel as preference
    from rto_fast.kernels.token_reward_gae import kernel as gae

    launches: Counter[str] = Counter()

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            launches[self.name] += 1
            return self.kernel[grid]

    for module, name in (
        (linear, "fold_kernel"),
        (linear, "d_logits_kernel"),
        (ppo, "ppo_kernel"),
        (preference, "pairs_kernel"),
        (gae, "_token_reward_gae"),
        (attention, "split_kernel"),
        (attention, "combine_kernel"),
    ):
        monkeypatch.setattr(module, name, Counted(name, getattr(module, name)))

    def count(run) -> dict[str, int]:
        launches.clear()
        run()
        return dict(launches)

    hidden, weight, target = head_inputs(Shape("tiny", 8, 300), 20, "cpu", torch.float32)
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    cu_seqlens = offsets(20, 4, "cpu")
    tiles = 3 * 3  # 20 rows by 8, 300 columns by 128
    run = lambda: linear_logprob(*leaves, target, backend="triton").sum().backward()  # noqa: E731
    assert count(run) == {"fold_kernel": tiles, "d_logits_kernel": tiles}
    given = decisions(torch.zeros(20))
    assert count(lambda: ppo_head(*leaves, target, *given, backend="triton").loss.backward()) == {"ppo_kernel": 1}
    reward, triton = RewardSpec(0.1, 0.1), dict(backend="triton")
    columns = [torch.zeros(20)] * 4
    assert count(lambda: token_reward_gae(*columns, cu_seqlens, reward, **triton)) == {"_token_reward_gae": 1}
    run = lambda: preference_head(*leaves, target, cu_seqlens, torch.zeros(4), backend="triton")  # noqa: E731
    assert count(run) == {"fold_kernel": tiles, "pairs_kernel": 1}
    logits = [FactoredLogits(hidden, weight) for _ in range(3)]
    store, lengths = torch.zeros(3, 1, 513, 8), torch.tensor([1, 512, 3])
    run = lambda n: decode_attention(store[:, :, 0], *[store[:, :, :n]] * 2, lengths, 1.0, **triton)  # noqa: E731
    assert count(lambda: run(512)) == {"split_kernel": 1}
    assert count(lambda: run(513)) == {"split_kernel": 1, "combine_kernel": 1}
    # 60 stacked rows are 8 chunks
    run = lambda: rto_score(*logits, target, columns[0], cu_seqlens, reward, **triton)  # noqa: E731
    assert count(run) == {"fold_kernel": 8 * 3, "_token_reward_gae": 1}


def ratio(run, baseline, rounds: int = 7) -> float:
    """Fastest of `run` over fastest of `baseline`, timed in turn."""
    times = {name: [] for name in ("run", "baseline")}
    for i in range(rounds + 1):
        for name, function in (("run", run), ("baseline", baseline)):
            took = timing.once(function, "cpu")
            if i:
                times[name].append(took)
    return min(times["run"]) / min(times["baseline"])


@pytest.mark.alone
@needs_native
@pytest.mark.skipif(torch.cuda.is_available(), reason="for the native operators")
class TestNativeRatios:
    def test_scoring_costs_its_gemm(self):
        hidden, weight, target = head_inputs(SHAPE, ROWS, "cpu", torch.float32)
        out = torch.empty(ROWS, SHAPE.vocab)
        with torch.no_grad():
            found = ratio(lambda: linear_logprob(hidden, weight, target), lambda: torch.mm(hidden, weight.T, out=out))
        assert found <= 1.6, f"{found:.2f} x the bare GEMM"

    def test_a_policy_update_is_faster_than_eager(self):
        hidden, weight, target = head_inputs(SHAPE, ROWS, "cpu", torch.float32)
        given = decisions(linear_logprob(hidden, weight, target))
        leaves = [x.requires_grad_() for x in (hidden, weight)]
        ours = lambda: torch.autograd.grad(ppo_head(*leaves, target, *given).loss, leaves)  # noqa: E731
        eager = lambda: torch.autograd.grad(peers.ppo_loss(peers.eager, *leaves, target, given, 0.2), leaves)  # noqa: E731
        found = ratio(ours, eager, rounds=4)
        assert found <= 1.0, f"{found:.2f} x eager"

    def test_rewards_are_far_from_a_loop_over_columns(self):
        g = torch.Generator().manual_seed(0)
        columns = [torch.randn(8192, generator=g) for _ in range(4)]
        cu_seqlens = offsets(8192, 32, "cpu")
        reward = RewardSpec(beta_1=0.1, beta_2=0.1, clip=0.1)
        found = ratio(
            lambda: token_reward_gae(*columns, cu_seqlens, reward, backend="native"),
            lambda: token_reward_gae(*columns, cu_seqlens, reward, backend="reference"),
        )
        assert found <= 0.25, f"{found:.2f} x the vectorised reference"
