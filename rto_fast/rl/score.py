"""Log-probs, values, token rewards and advantages of answers: response rows only, one workspace for all models.

R response rows, S answers.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.rto_score import FactoredLogits, RTOScore, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, segment_gather, select
from rto_fast.training import mesh


class Models(NamedTuple):
    """Whoever is asked about an answer."""

    policy: LanguageModel
    reference: LanguageModel
    dpo: LanguageModel | None
    critic: ScalarModel | None
    """None: the policy's own value head, or, where it has none, a value of 0 (group-relative advantages)."""


def score_all(
    models: Models,
    packed: PackedBatch,  # all answers, on the CPU
    reward: RewardSpec,
    *,
    microbatch_rows: int,
    workspace_mb: int | None,
    device: torch.device,
) -> RTOScore:
    """Every answer's scores in the order of the answers, so that nothing depends on microbatch_rows."""
    shares = mesh.shares(packed.lengths, microbatch_rows, finer=False)
    groups, idle = shares[mesh.rank()]
    parts = []
    for group in groups:
        batch, places = select(packed, group)
        part = reward.select(torch.tensor(group, device=device), places.to(device))
        parts.append(score(models, batch.to(device), part, workspace_mb))
    own = parts[: len(parts) - idle]
    # every rank's answers, in the order in which they were scored
    scored = [[i for group in share.groups[: len(share.groups) - share.idle] for i in group] for share in shares]
    answers = [i for part in scored for i in part]
    counts = packed.response_lengths
    sizes = {"moments": [len(part) for part in scored], "": [sum(counts[i] for i in part) for part in scored]}
    # back from the order of the packing
    rows = segment_gather(packed.response_cu_seqlens, answers)
    by_answer, by_row = (x.argsort().to(device) for x in (torch.tensor(answers), rows))

    def column(name: str) -> Any:
        if getattr(parts[0], name) is None:
            return None
        pieces = [getattr(part, name) for part in own] or [getattr(parts[0], name)[:0]]
        whole = mesh.gather(torch.cat(pieces), sizes.get(name, sizes[""]))
        return whole[by_answer if name == "moments" else by_row]

    return RTOScore(*map(column, RTOScore._fields))


@torch.no_grad()
def score(models: Models, batch: PackedBatch, reward: RewardSpec, workspace_mb: int | None) -> RTOScore:
    """Score one packed batch with every model.

    The policy's log-probs are those of the training forward, never the sampler's, so that the first PPO ratio is 1.
    """
    policy, reference, dpo, critic = models
    device = batch.input_ids.device.type
    precision = partial(
        torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
    )
    values = None if critic is None else critic(batch)

    # the forwards are nested, so that a sharding wrapper holds the three heads together while they are used; a head
    # runs outside autocast, the next model's forward does not
    def with_policy(hidden: Tensor, head: Head) -> RTOScore:
        own = _own_values(policy, batch.responses(hidden)) if values is None else values
        logits = FactoredLogits(hidden, *head)
        with precision():
            return reference(batch, lambda h, head: with_reference(logits, own, FactoredLogits(h, *head)))

    def with_reference(logits: FactoredLogits, values: Tensor, ref_logits: FactoredLogits) -> RTOScore:
        if dpo is None:
            return finish(logits, ref_logits, None, values)
        with precision():
            return dpo(batch, lambda h, head: finish(logits, ref_logits, FactoredLogits(h, *head), values))

    def finish(
        logits: FactoredLogits, ref_logits: FactoredLogits, dpo_logits: FactoredLogits | None, values: Tensor
    ) -> RTOScore:
        return rto_score(
            logits,
            ref_logits,
            dpo_logits,
            batch.target_ids,
            values,
            batch.response_cu_seqlens,
            reward,
            rows=batch.response_rows,
            workspace_mb=workspace_mb,
        )

    return policy(batch, with_policy)


def _own_values(policy: LanguageModel, hidden: Tensor) -> Tensor:
    if policy.value_head is None:
        return torch.zeros(len(hidden), device=hidden.device)
    return policy.value_head(hidden.float())[:, 0]
