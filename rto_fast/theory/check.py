"""One line of the report: a claim of the papers, what it allows, what was measured."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.theory.token_tree import Conditionals

EXACT = 1e-10
"""What two float64 computations of one number may differ by."""


@dataclass(frozen=True)
class Check:
    """`passed` says that the mathematics is as this package states it, and decides the exit status.

    `printed` is False where the claim, as the paper prints it, is wrong: then `passed` means that the counterexample
    stands.
    """

    claim: str
    bound: str
    measured: str
    passed: bool
    printed: bool = True

    @property
    def verdict(self) -> str:
        if not self.passed:
            return "FAILS"
        return "holds" if self.printed else "not as printed"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_table(vocab: int, depth: int, g: torch.Generator, scale: float = 1.0) -> list[Tensor]:
    """D tensors (V^d, V) of independent normals."""
    return [scale * torch.randn(vocab**d, vocab, generator=g, dtype=torch.float64) for d in range(depth)]


def random_policy(vocab: int, depth: int, g: torch.Generator, scale: float = 1.0) -> list[Tensor]:
    """D tensors (V^d, V) of log-probs."""
    return [rows.log_softmax(1) for rows in random_table(vocab, depth, g, scale)]


def distance(a: Tensor | Conditionals, b: Tensor | Conditionals) -> float:
    """max |a - b| over two tensors or two tables."""
    pairs = [(a, b)] if isinstance(a, Tensor) and isinstance(b, Tensor) else zip(a, b, strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def exact(claim: str, errors: Iterable[float]) -> Check:
    """The largest error against EXACT."""
    worst = max(errors)
    return Check(claim, f"<= {EXACT:.0e}", f"{worst:.1e}", worst <= EXACT)
