"""Log-probs, values, token rewards and advantages of answers: one call, one workspace, response rows only.

R response rows.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, Rows


@dataclass(frozen=True, slots=True)
class Scores:
    """What PPO needs to know of each response row, (R,) float32, and of each of S answers."""

    policy: Tensor
    """Log-probs, as are the next two"""
    reference: Tensor
    dpo: Tensor | None
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    """Not whitened"""
    returns: Tensor
    moments: Tensor
    """(S, 3) float32 of each answer's advantages, for whitening"""


@torch.no_grad()
def score(
    batch: PackedBatch,
    rows: Rows,
    *,
    policy: LanguageModel,
    reference: LanguageModel,
    dpo: LanguageModel | None,
    critic: ScalarModel | None,
    reward: RewardSpec,
    workspace_mb: int | None,
) -> Scores:
    """Score one packed batch with every model. `critic=None` takes the policy's own value head, or, where it has none,
    a value of 0 (group-relative advantages).

    The policy's log-probs are those of the training forward, never the sampler's, so that the first PPO ratio is 1.
    """
    device = batch.input_ids.device.type
    precision = partial(
        torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
    )
    values = None if critic is None else critic(batch, rows.index)

    # the forwards are nested, so that a sharding wrapper holds the three heads together while they are used; a head
    # runs outside autocast, the next model's forward does not
    def with_policy(hidden: Tensor, head: Head) -> Scores:
        own = _own_values(policy, hidden, rows) if values is None else values
        logits = FactoredLogits(hidden, *head)
        with precision():
            return reference(batch, lambda h, head: with_reference(logits, own, FactoredLogits(h, *head)))

    def with_reference(logits: FactoredLogits, values: Tensor, ref_logits: FactoredLogits) -> Scores:
        if dpo is None:
            return finish(logits, ref_logits, None, values)
        with precision():
            return dpo(batch, lambda h, head: finish(logits, ref_logits, FactoredLogits(h, *head), values))

    def finish(
        logits: FactoredLogits, ref_logits: FactoredLogits, dpo_logits: FactoredLogits | None, values: Tensor
    ) -> Scores:
        out = rto_score(
            logits,
            ref_logits,
            dpo_logits,
            batch.target_ids,
            values,
            rows.cu_seqlens,
            reward,
            rows=rows.index,
            workspace_mb=workspace_mb,
        )
        return Scores(*out)

    return policy(batch, with_policy)


def _own_values(policy: LanguageModel, hidden: Tensor, rows: Rows) -> Tensor:
    if policy.value_head is None:
        return torch.zeros(rows.index.shape, device=hidden.device)
    return policy.value_head(hidden[rows.index].float())[:, 0]
