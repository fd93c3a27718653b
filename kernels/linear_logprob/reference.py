"""linear_logprob by definition: the oracle of the tests, in any float dtype, with the whole (T, V) logits in memory."""

import torch
from torch import Tensor


def logits_reference(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """softcap(h W^T + b) / temperature, (T, V)."""
    z = hidden @ weight.T
    if bias is not None:
        z = z + bias
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,  # (T,) int64
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprobs, entropy, lse), each (T,), in the dtype of the inputs; a probability of 0 adds 0 to the entropy."""
    z = logits_reference(hidden, weight, bias, temperature, softcap)
    logp = torch.log_softmax(z, -1)
    entropy = -(logp.exp() * torch.where(logp == -torch.inf, 0.0, logp)).sum(-1)
    return logp.gather(1, target[:, None])[:, 0], entropy, torch.logsumexp(z, -1)
