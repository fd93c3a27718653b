"""Shapes of real heads, and inputs whose softmax looks like a language model's.

T rows, H hidden, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    name: str
    width: int
    """H"""
    vocab: int
    """V"""

    def gemm_flops(self, rows: int) -> int:
        return 2 * rows * self.width * self.vocab


PYTHIA = Shape("Pythia-2.8B", 2560, 50304)
LLAMA = Shape("Llama-3-8B", 4096, 128256)
QWEN = Shape("Qwen-1.7B", 2048, 151936)
REAL = (PYTHIA, LLAMA, QWEN)
LAPTOP = Shape("laptop", 512, 50304)
TINY = Shape("tiny", 24, 300)


class Inputs(NamedTuple):
    hidden: Tensor
    """(T, H)"""
    weight: Tensor
    """(V, H)"""
    target: Tensor
    """(T,) int64"""


def head_inputs(shape: Shape, rows: int, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Inputs:
    """Logits of standard deviation about 2; every other row is fairly sure of its target, as text makes models be."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=dtype, generator=generator)

    hidden, weight = normal(rows, shape.width), normal(shape.vocab, shape.width)
    weight *= 2.0 * shape.width**-0.5
    target = torch.randint(shape.vocab, (rows,), device=device, generator=generator)
    # w . w = 4, so that this adds about 10 to the target's logit
    hidden[::2] += 2.5 * weight[target[::2]]
    return Inputs(hidden, weight, target)


class Decisions(NamedTuple):
    """What PPO knows of each row; (T,) float32 each."""

    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor


def decisions(logprobs: Tensor, seed: int = 1) -> Decisions:
    """Old log-probs about as far from the present ones as after a few steps, so that some rows are clipped."""
    generator = torch.Generator(logprobs.device).manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(logprobs.shape, device=logprobs.device, generator=generator)

    logprobs = logprobs.float()
    return Decisions(logprobs + 0.15 * normal(), normal(), torch.full_like(logprobs, 1.0 / max(1, len(logprobs))))


def offsets(rows: int, sequences: int, device: str) -> Tensor:
    """(S+1,) int32: ragged sequences, uniform cuts of the rows."""
    generator = torch.Generator().manual_seed(2)
    cuts = torch.randint(rows + 1, (sequences - 1,), generator=generator).sort().values
    return torch.cat((torch.zeros(1), cuts, torch.tensor([rows]))).int().to(device)
