"""Equation 16: the implicit reward that the reference's own answers must have on average, measured in two ways.

R response rows, V vocabulary, H hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rto_fast.data.encode import EncodedDemonstration
from rto_fast.kernels.linear_logprob.reference import logits_reference
from rto_fast.model.language import Head, LanguageModel
from rto_fast.packing import microbatches, pack
from rto_fast.rollout import Completion

_CHUNK_MB = 64


@torch.no_grad()
def kl_per_answer(
    reference: LanguageModel,
    model: LanguageModel,
    answers: Sequence[Completion | EncodedDemonstration],
    microbatch_rows: int,
) -> np.ndarray:
    """sum_t KL(pi_ref(.|s_t) || pi(.|s_t)) over the states of each answer, (answers,) float64 nats.

    Over answers drawn from pi_ref its mean is KL(pi_ref || pi) of whole answers (chain rule), and it varies less than
    the mean of log pi_ref/pi, since the sum over the next token is exact. Both models' logits are made in float32, in
    chunks of rows that fit 64 MB.
    """
    out = np.zeros(len(answers))
    for group in microbatches([len(a.prompt) + len(a.response) - 1 for a in answers], microbatch_rows):
        packed = pack([answers[i].prompt for i in group], [answers[i].response for i in group]).to(reference.hf.device)
        (ref_hidden, ref_head), (hidden, head) = (m(packed, lambda *out: out) for m in (reference, model))
        ref_hidden, hidden = packed.responses(ref_hidden), packed.responses(hidden)
        chunk = max(1, _CHUNK_MB * 2**20 // (16 * ref_head.weight.shape[0]))
        chunks = zip(ref_hidden.split(chunk), hidden.split(chunk), strict=True)
        kl = torch.cat([_kl(_logprobs(x, ref_head), _logprobs(y, head)) for x, y in chunks])
        for i, states in zip(group, kl.split(packed.response_lengths), strict=True):
            out[i] = states.double().sum().item()
    return out


def _logprobs(hidden: Tensor, head: Head) -> Tensor:
    """(R, V) float32 log-probs of the next token."""
    head = head.to(torch.float32)
    return logits_reference(hidden.float(), head.weight, **head.options()).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """(R,) KL(p || q) of log-probs. A token of probability zero under p adds nothing, whatever q."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)
