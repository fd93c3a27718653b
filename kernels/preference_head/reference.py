"""preference_head by definition, with whole logits (the oracle of the tests), and its stage over pairs in torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rto_fast.kernels.linear_logprob import linear_logprob_reference


def pair_losses(
    logprobs: Tensor,  # (2B,) summed policy log-probs: B chosen, then B rejected
    ref_logprobs: Tensor,  # (2B,)
    beta: float,
    label_smoothing: float,
    loss: str,
) -> tuple[Tensor, Tensor]:
    """(losses (B,), margins (B,))."""
    chosen, rejected = (logprobs - ref_logprobs).chunk(2)
    margins = beta * (chosen - rejected)
    if loss == "ipo":
        return (margins / beta - 1.0 / (2.0 * beta)).square(), margins
    smoothing = label_smoothing
    return -(1.0 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins), margins


def preference_head_reference(
    hidden: Tensor,  # (R, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (R,) int64
    cu_seqlens: Tensor,  # (2B+1,) int32
    ref_logprobs: Tensor,  # (2B,)
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
    pair_weights: Tensor | None = None,  # (B,)
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (), logprobs (2B,), margins (B,)) with the whole (R, V) logits in memory."""
    rows, _, _ = linear_logprob_reference(hidden, weight, target, bias=bias, temperature=temperature, softcap=softcap)
    offsets = cu_seqlens.tolist()
    sums = torch.stack([rows[a:b].sum() for a, b in zip(offsets, offsets[1:], strict=False)])
    losses, margins = pair_losses(sums, ref_logprobs, beta, label_smoothing, loss)
    return (losses if pair_weights is None else losses * pair_weights).sum(), sums, margins
