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
    logprobs: list[Tensor | None] = []
    for model in (policy, reference, dpo):
        if model is None:
            logprobs.append(None)
            continue
        hidden, weight, bias, softcap, temperature = model
        at = (hidden, target) if rows is None else (hidden[rows], target[rows])
        options = dict(bias=bias, softcap=softcap, temperature=temperature)
        logprobs.append(linear_logprob_reference(at[0], weight, at[1], **options)[0])
    rewards = token_reward_gae_reference(*logprobs, values, cu_seqlens, reward)
    return RTOScore(*logprobs, values, *rewards)
