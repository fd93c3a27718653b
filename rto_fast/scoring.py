"""Log-probs of the three policies, and values, of the same answers: one call, one workspace, response rows only.

R response rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.model import Head, LanguageModel, ScalarModel
from rto_fast.types import PackedBatch, Rows


def response_logprobs(model: LanguageModel, batch: PackedBatch, rows: Rows, workspace_mb: int | None) -> Tensor:
    """(R,) float32 log-probs of the response tokens; differentiable in the model's weights."""
    target = batch.target_ids[rows.index]

    def head_rows(hidden: Tensor, head: Head) -> Tensor:
        return linear_logprob(hidden[rows.index], head.weight, target, workspace_mb=workspace_mb, **head.options())

    return model(batch, head_rows)


@dataclass(frozen=True, slots=True)
class Scores:
    """What the reward needs to know of each response row; all (R,) float32."""

    policy: Tensor
    reference: Tensor
    dpo: Tensor | None
    values: Tensor


@torch.no_grad()
def score(
    batch: PackedBatch,
    rows: Rows,
    *,
    policy: LanguageModel,
    reference: LanguageModel,
    dpo: LanguageModel | None,
    critic: ScalarModel | None,
    workspace_mb: int | None,
) -> Scores:
    """Score one packed batch with every model. `critic=None` takes the policy's own value head.

    The policy's log-probs are those of the training forward, never the sampler's, so that the first PPO ratio is 1.
    """
    target = batch.target_ids[rows.index]

    def with_value(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
        hidden = hidden[rows.index]
        logprobs = linear_logprob(hidden, head.weight, target, workspace_mb=workspace_mb, **head.options())
        own = policy.value_head(hidden.float())[:, 0] if critic is None else None
        return logprobs, own

    policy_logprobs, values = policy(batch, with_value)
    return Scores(
        policy=policy_logprobs,
        reference=response_logprobs(reference, batch, rows, workspace_mb),
        dpo=None if dpo is None else response_logprobs(dpo, batch, rows, workspace_mb),
        values=critic(batch, rows.index) if critic is not None else values,
    )
