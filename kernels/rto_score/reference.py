"""rto_score by definition: whole logits of three models, then the reward row by row; the oracle of the tests."""

from typing import NamedTuple

from torch import Tensor

from rto_fast.kernels.linear_logprob import linear_logprob_reference
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae_reference


class FactoredLogits(NamedTuple):
    """A model's logits softcap(hidden weight^T + bias) / temperature, not multiplied out."""

    hidden: Tensor
    """(T, H)"""
    weight: Tensor
    """(V, H), in the dtype of hidden"""
    bias: Tensor | None = None
    """(V,)"""
    softcap: float | None = None
    temperature: float = 1.0


class RTOScore(NamedTuple):
    """What PPO needs of every response row; all float32 (float64 for float64), none with a gradient."""

    old_logprobs: Tensor
    """(R,) of the policy: PPO's log pi_old."""
    ref_logprobs: Tensor
    """(R,)"""
    dpo_logprobs: Tensor | None
    """(R,); None when beta_1 is 0 or there is no DPO model: nothing was computed."""
    values: Tensor
    """(R,), those that were given."""
    rewards: Tensor
    """(R,)"""
    advantages: Tensor
    """(R,), not whitened"""
    returns: Tensor
    """(R,)"""
    moments: Tensor
    """(S, 3): count, mean, M2 of each sequence's advantages, for `merge_moments`."""


def rto_score_reference(
    policy: FactoredLogits,
    reference: FactoredLogits,
    dpo: FactoredLogits | None,
    target: Tensor,  # (T,) int64
    values: Tensor,  # (R,)
    cu_seqlens: Tensor,  # (S+1,) int32
    reward: RewardSpec,
    *,
    rows: Tensor | None = None,  # (R,) int64
) -> RTOScore:
    """An RTOScore in the dtype of the inputs."""

    def logprobs(model: FactoredLogits) -> Tensor:
        hidden, weight, bias, softcap, temperature = model
        h, y = (hidden, target) if rows is None else (hidden[rows], target[rows])
        return linear_logprob_reference(h, weight, y, bias=bias, softcap=softcap, temperature=temperature)[0]

    columns = (logprobs(policy), logprobs(reference), None if dpo is None else logprobs(dpo), values)
    return RTOScore(*columns, *token_reward_gae_reference(*columns, cu_seqlens, reward))
