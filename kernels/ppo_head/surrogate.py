"""The clipped surrogate of a row and its derivative: what ppo_head does once it has log-probs, in torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """Numbers of the loss."""

    clip: float
    entropy_coef: float
    kl_coef: float
    kl: str


class Decisions(NamedTuple):
    """What a row brings beside its hidden state, (R,) each."""

    target: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    ref_logprobs: Tensor | None
    live: Tensor | None = None
    """bool: rows whose hidden states count; None where all do, the host having left out the others."""

    def each(self, f: Callable[[Tensor], Tensor]) -> "Decisions":
        """Of f(x) for every tensor x."""
        ref_logprobs, live = (None if x is None else f(x) for x in (self.ref_logprobs, self.live))
        return Decisions(f(self.target), f(self.old_logprobs), f(self.advantages), f(self.weights), ref_logprobs, live)

    def rows(self, start: int, stop: int) -> "Decisions":
        """Of some of the rows."""
        return self.each(lambda x: x[start:stop])


class ChunkRows(NamedTuple):
    """What a backend makes of a chunk of c rows of logits."""

    loss: Tensor
    """(c,), as are `logprobs` and `entropy`."""
    logprobs: Tensor
    entropy: Tensor | None
    d_logits: Tensor
    """[c, V], up to the row scale."""
    scale: Tensor | None = None
    """(c,) factor of each row of d_logits; None where nothing is left to multiply."""
    silent: Tensor | None = None
    """(c,) bool: rows whose gradient is 0 throughout, whatever d_logits holds; None where the host knows of none."""


def surrogate(
    logprobs: Tensor, entropy: Tensor | None, rows: Decisions, s: Surrogate
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, d loss / d logprob, d loss / d entropy) of each row, weights included; None without an entropy term."""
    ratio = torch.exp(logprobs - rows.old_logprobs)
    free = -rows.advantages * ratio
    clipped = -rows.advantages * ratio.clamp(1.0 - s.clip, 1.0 + s.clip)
    loss = torch.maximum(free, clipped)
    # the clipped side is constant where it is the larger one; inside the clip range both are the same; NaN stays NaN
    d_logprob = torch.where(free < clipped, 0.0, free)
    if s.kl_coef:
        assert rows.ref_logprobs is not None, "a KL term comes with ref_logprobs"
        d = logprobs - rows.ref_logprobs
        if s.kl == "k1":
            kl, d_kl = d, torch.ones_like(d)
        elif s.kl == "k2":
            kl, d_kl = 0.5 * d * d, d
        else:
            # expm1 keeps the digits of a policy that is still close to the reference
            e = torch.expm1(-d)
            kl, d_kl = e + d, -e
        loss = loss + s.kl_coef * kl
        d_logprob = d_logprob + s.kl_coef * d_kl
    d_entropy = None
    if s.entropy_coef:
        assert entropy is not None, "an entropy term comes with the entropy"
        loss = loss - s.entropy_coef * entropy
        d_entropy = -s.entropy_coef * rows.weights
    # a row of weight 0 adds nothing, whatever its numbers are
    live = rows.weights != 0
    return torch.where(live, loss * rows.weights, 0.0), torch.where(live, d_logprob * rows.weights, 0.0), d_entropy
