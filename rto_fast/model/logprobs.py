"""What a model says of packed answers: log-probs of the response tokens, a score at the last token.

R response rows, S sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, microbatches, pack_whole


def response_logprobs(
    model: LanguageModel, batch: PackedBatch, workspace_mb: int | None, weight_grad: Tensor | None = None
) -> Tensor:
    """(R,) float32 log-probs of the response tokens; differentiable in the model's weights.

    weight_grad  what the head's gradient is added to, by a backward (`LanguageModel.head_gradient`)
    """
    target = batch.responses(batch.target_ids)

    def head_rows(hidden: Tensor, head: Head) -> Tensor:
        hidden = batch.responses(hidden)
        out = linear_logprob(
            hidden,
            head.weight,
            target,
            workspace_mb=workspace_mb,
            weight_grad=weight_grad,
            **head.options(),
        )
        assert isinstance(out, Tensor)  # no statistics were asked for
        return out

    return model(batch, head_rows)


@torch.no_grad()
def last_token_scores(model: ScalarModel, sequences: Sequence[list[int]], microbatch_rows: int) -> Tensor:
    """(S,) float32 on the model's device: what the model says of each whole sequence, at its last token."""
    device = model.head.weight.device
    scores = torch.zeros(len(sequences), device=device)
    for group in microbatches([len(s) for s in sequences], microbatch_rows):
        scores[group] = model(pack_whole([sequences[i] for i in group]).to(device)).to(scores.dtype)
    return scores
