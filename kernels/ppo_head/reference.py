"""ppo_head by definition: the oracle of the tests, in any float dtype, with the whole (R, V) logits in memory."""

import torch
from torch import Tensor

from rto_fast.kernels.linear_logprob import linear_logprob_reference


def kl_reference(logprobs: Tensor, ref_logprobs: Tensor, kl: str) -> Tensor:
    """k1, k2 or k3 of http://joschu.net/blog/kl-approx.html, per row."""
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": 0.5 * d * d, "k3": torch.exp(-d) + d - 1.0}[kl]


def ppo_head_reference(
    hidden: Tensor,  # (R, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (R,) int64
    old_logprobs: Tensor,  # (R,), as are all that follow
    advantages: Tensor,
    weights: Tensor,
    *,
    clip: float = 0.2,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    kl: str = "k3",
    ref_logprobs: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (), logprobs (R,), entropy (R,)); autograd through the loss is the definition of the gradient."""
    logprobs, entropy, _ = linear_logprob_reference(
        hidden, weight, target, bias=bias, temperature=temperature, softcap=softcap
    )
    ratio = torch.exp(logprobs - old_logprobs)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip))
    loss = loss - entropy_coef * entropy
    if kl_coef:
        assert ref_logprobs is not None, "a KL term comes with ref_logprobs"
        loss = loss + kl_coef * kl_reference(logprobs, ref_logprobs, kl)
    return (weights * loss).sum(), logprobs.detach(), entropy.detach()
