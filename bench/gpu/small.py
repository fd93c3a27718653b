"""Every Triton kernel, in each of its modes, at small ragged shapes: what compute-sanitizer watches.

The kernels are called without the matrix products around them, so that a checking tool sees ours and little else.
"""

from pathlib import Path

import torch

import rto_fast.kernels
from bench.shapes import offsets
from rto_fast.kernels.common import kernel as tiles
from rto_fast.kernels.common.workspace import padded, padded_bias, tile
from rto_fast.kernels.decode_attention.kernel import decode_attention_triton
from rto_fast.kernels.ppo_head import kernel as ppo
from rto_fast.kernels.ppo_head.surrogate import Decisions, Surrogate
from rto_fast.kernels.preference_head import kernel as preference
from rto_fast.kernels.token_reward_gae import RewardSpec
from rto_fast.kernels.token_reward_gae.kernel import token_reward_gae_triton

# one block of columns is 4096 wide, one of rows 512
COLUMNS, ROWS = (5003, 130), 5
LENGTHS = (700, 0, 1, 512, 513)


def logits(device: str, columns: int) -> torch.Tensor:
    """[ROWS, columns], laid out as the operators lay them out."""
    return tile(torch.randn(ROWS * padded(columns, tiles.PITCH), device=device), ROWS, columns, tiles.PITCH)


def common(device: str, dtype: torch.dtype) -> None:
    for columns in COLUMNS:
        for first, softcap, entropy in ((0, 30.0, True), (64, None, False)):
            z = logits(device, columns)
            bias = torch.randn(columns, device=device) if softcap else None
            bias = padded_bias(bias, 0, columns, z.dtype, tiles.PITCH)
            target = torch.randint(columns, (ROWS,), device=device) + first
            transform, state = (0.7, softcap), tiles.new_state(ROWS, entropy, z.device, z.dtype)
            tiles.fold(z, bias, transform, target, first, state)
            stats, slope = tiles.finish(state), torch.randn(ROWS, device=device)
            tiles.d_logits_(z, bias, transform, target, first, dtype, stats, slope, slope if entropy else None)


def ppo_head(device: str, dtype: torch.dtype) -> None:
    for columns in COLUMNS:
        for kl, entropy, gradient in (("k1", True, True), ("k3", False, True), ("k3", True, False)):
            z = logits(device, columns)
            target = torch.randint(columns, (ROWS,), device=device)
            rows = Decisions(target, *(torch.randn(ROWS, device=device) for _ in range(4)))
            surrogate = Surrogate(0.2, 0.01 if entropy else 0.0, 0.1, kl)
            ppo.ppo_rows_(z, None, (1.0, None), rows, surrogate, entropy, gradient, dtype)


def preference_head(device: str, dtype: torch.dtype) -> None:
    rows = torch.randn(1504, device=device)
    cu_seqlens = torch.tensor([0, 1500, 1501, 1501, 1504], device=device, dtype=torch.int32)
    for loss in ("sigmoid", "ipo"):
        preference.pairs(rows, cu_seqlens, rows[:4].clone(), rows[:2].clone(), 0.1, 0.0, loss)


def token_reward_gae(device: str, dtype: torch.dtype) -> None:
    rows, sequences = sum(LENGTHS), len(LENGTHS)
    cu_seqlens = torch.tensor([0, *LENGTHS], device=device).cumsum(0).int()
    columns = [torch.randn(rows, device=device) for _ in range(4)]
    ends = torch.arange(rows, device=device) % 9 == 0
    for granularity in ("token", "sentence", "response"):
        for shaping_only in (False, True):
            reward = RewardSpec(
                0.5, 0.1, scores=columns[0][:sequences], beta_3=1.0, terminal=columns[1][:sequences],
                counted=ends[:sequences], granularity=granularity, sentence_ends=ends, shaping_only=shaping_only,
            )  # fmt: skip
            token_reward_gae_triton(*columns, cu_seqlens, reward)
    count = 20
    token_reward_gae_triton(*columns, offsets(rows, count, device), RewardSpec(0.5, 0.0))


def decode_attention(device: str, dtype: torch.dtype) -> None:
    """Rows that end at an edge of a split and one position beside it, in one split and in three."""
    lengths = torch.tensor([1, 512, 513, 0, 1030], device=device)
    for group, size in ((1, 80), (4, 64)):
        query = torch.randn(ROWS, 2 * group, size, device=device).to(dtype)
        cache = torch.randn(2, ROWS + 1, 2, 1040, size, device=device).to(dtype)
        for capacity, window, softcap in ((1030, None, None), (1030, 100, 5.0), (500, None, 5.0)):
            keys, values = cache[:, :ROWS, :, :capacity]
            decode_attention_triton(query, keys, values, lengths.clamp(max=capacity), 0.1, window, softcap)


KERNELS = {f.__name__: f for f in (common, decode_attention, ppo_head, preference_head, token_reward_gae)}


def unwatched() -> set[str]:
    """Folders that have Triton kernels, and no function here."""
    return {p.parent.name for root in rto_fast.kernels.__path__ for p in Path(root).glob("*/kernel.py")} - {*KERNELS}


def main(device: str = "cuda") -> None:
    torch.manual_seed(0)
    for run in KERNELS.values():
        # the interpreter on a CPU has no half-precision gradients: torch has no GEMM there that would take them
        run(device, torch.bfloat16 if device == "cuda" else torch.float32)
    if device == "cuda":
        torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
