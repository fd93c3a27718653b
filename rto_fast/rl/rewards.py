"""Around the score: the reward's configuration before it, whitening and statistics over a whole rollout after it.

R response rows, S sequences.
"""

import math

import torch
from torch import Tensor

from rto_fast.config import RewardConfig
from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.kernels.rto_score import RTOScore
from rto_fast.kernels.token_reward_gae import RewardSpec, merge_moments


def reward_spec(
    config: RewardConfig,
    *,
    beta_2: float,
    gamma: float,
    lam: float,
    sentence_scores: Tensor | None = None,
    truncated: Tensor | None = None,
    sentence_ends: Tensor | None = None,
) -> RewardSpec:
    """The configuration's reward as the operators take it.

    `beta_2` is given apart from the config because it may adapt; sentence_scores (S,) float32 are normalised scores of
    a reward model; truncated (S,) bool says which answers hit the length limit.
    """
    counted = ~truncated if truncated is not None and config.truncated == "mask" else None
    terminal = None
    if truncated is not None and config.missing_eos_penalty:
        terminal = truncated.float() * -config.missing_eos_penalty
    return RewardSpec(
        beta_1=config.beta_1,
        beta_2=beta_2,
        clip=config.clip,
        scores=sentence_scores if config.beta_3 else None,
        beta_3=config.beta_3,
        score_clip=config.score_clip,
        terminal=terminal,
        granularity=config.granularity,
        sentence_ends=sentence_ends,
        shaping_only=config.shaping_only,
        gamma=gamma,
        lam=lam,
        counted=counted,
    )


def whiten(scores: RTOScore) -> Tensor:
    """(R,) float32: A <- (A - mean) / sqrt(max(var, 1e-8)), mean and variance over all counted rows of a rollout."""
    _, mean, variance = merge_moments(scores.moments)
    return (scores.advantages - mean) * variance.clamp_min(1e-8).rsqrt()


def check_finite(scores: RTOScore, sentence_scores: Tensor | None, config: RewardConfig) -> None:
    """Raises ValueError, naming the model that it came from, when a reward or a value is not finite."""
    if not (torch.isfinite(scores.rewards).all() & torch.isfinite(scores.values).all()):
        raise ValueError(_blame(scores, sentence_scores, config))


def _blame(scores: RTOScore, sentence_scores: Tensor | None, config: RewardConfig) -> str:
    """One sentence on where a reward that is not finite came from."""
    sources = {
        "the policy's log-probs": scores.old_logprobs,
        "the reference's log-probs (sft)": scores.ref_logprobs,
        "the DPO model's log-probs": scores.dpo_logprobs if config.beta_1 else None,
        "the critic's values": scores.values,
        "the sentence scores": sentence_scores,
    }
    bad = [
        f"{name} ({int((~x.isfinite()).sum())} of {x.numel()})"
        for name, x in sources.items()
        if x is not None and not x.isfinite().all()
    ]
    origin = ", ".join(bad) or "the reward's coefficients"
    return (
        f"rto.reward: a reward is not finite, from {origin}; nothing was updated: check that model, or lower its "
        "stage's learning rate"
    )


def reward_statistics(
    scores: RTOScore,
    cu_seqlens: Tensor,
    config: RewardConfig,
    *,
    beta_2: float,
    sentence_scores: Tensor | None = None,
    truncated: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each component's mean, |mean|, clip fraction and share of the return's magnitude, on the device."""
    log_ratio = scores.old_logprobs - scores.ref_logprobs
    parts = {"kl": -beta_2 * log_ratio}
    stats: dict[str, Tensor] = {}
    if scores.dpo_logprobs is not None and config.beta_1:
        raw = config.beta_1 * (scores.dpo_logprobs - scores.ref_logprobs)
        parts["dense"] = raw.clamp(-config.clip, config.clip)
        if math.isfinite(config.clip):
            stats["reward/dense_clipped"] = (raw.abs() > config.clip).float().mean()
        stats["reward/implicit_per_answer"] = sequence_sums(
            scores.dpo_logprobs - scores.ref_logprobs, cu_seqlens
        ).mean()
    if sentence_scores is not None and config.beta_3:
        parts["score"] = config.beta_3 * sentence_scores.clamp(-config.score_clip, config.score_clip)
        stats["reward/score"] = sentence_scores.mean()
    total = sum((part.abs().sum() for part in parts.values()), start=log_ratio.new_zeros(())).clamp_min(1e-12)
    for name, part in parts.items():
        stats[f"reward/{name}_mean"] = part.mean()
        stats[f"reward/{name}_abs"] = part.abs().mean()
        stats[f"reward/{name}_share"] = part.abs().sum() / total
    stats["reward/per_answer"] = sequence_sums(scores.rewards, cu_seqlens).mean()
    stats["kl/per_answer"] = sequence_sums(log_ratio, cu_seqlens).mean()
    stats["kl/k1"] = log_ratio.mean()
    stats["kl/k3"] = ((-log_ratio).expm1() + log_ratio).mean()
    stats["values/mean"] = scores.values.mean()
    stats["values/explained"] = 1 - (scores.returns - scores.values).var(unbiased=False) / scores.returns.var(
        unbiased=False
    ).clamp_min(1e-12)
    if truncated is not None:
        stats["answers/truncated"] = truncated.float().mean()
    return stats


def next_beta_2(config: RewardConfig, beta_2: float, kl: float, answers: int) -> float:
    """The next iteration's beta_2: the proportional controller of Ziegler et al. 2019, section 2.2 (arXiv:1909.08593).

    beta_2 (1 + clamp(kl / target - 1, +-0.2) answers / horizon),   kl in nats per answer
    """
    if config.adaptive_kl_target is None:
        return beta_2
    error = min(max(kl / config.adaptive_kl_target - 1, -0.2), 0.2)
    return beta_2 * (1 + error * answers / config.adaptive_kl_horizon)
