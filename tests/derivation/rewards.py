"""The family's token rewards (arXiv:2404.18922, eq. 4.6 and its relatives), GAE and groups, one answer at a time.

n tokens of an answer. Every function takes and gives lists with one (n,) tensor per answer.
"""

import math

import torch
from torch import Tensor

from rto_fast.config import CorrectionConfig, RewardConfig


def dense(dpo: Tensor, ref: Tensor, config: RewardConfig) -> Tensor:
    """clip(beta_1 log pi_dpo/pi_ref, +-c) of every token."""
    return (config.beta_1 * (dpo - ref)).clamp(-config.clip, config.clip)


def paid(dense: Tensor, ends: list[bool], config: RewardConfig) -> Tensor:
    """The same sum, paid on every token, at the ends of sentences, or on the last token."""
    out, owed, last = torch.zeros_like(dense), 0.0, len(dense) - 1
    for t, reward in enumerate(dense):
        owed = owed + reward
        if config.granularity == "token" or t == last or (config.granularity == "sentence" and ends[t]):
            out[t], owed = owed, 0.0
    if config.shaping_only:  # the last token takes back what the others were paid
        out[last] = -out[:last].sum()
    return out


def token_rewards(
    logp: Tensor, ref: Tensor, dense: Tensor | None, ends: list[bool], score: float | None, cut: bool, beta_2: float,
    config: RewardConfig,
) -> Tensor:  # fmt: skip
    rewards = -beta_2 * (logp - ref)
    if dense is not None:
        rewards = rewards + paid(dense, ends, config)
    if score is not None:
        rewards[-1] += config.beta_3 * min(max(score, -config.score_clip), config.score_clip)
    if cut:
        rewards[-1] -= config.missing_eos_penalty
    return rewards


def advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE as it is defined (Schulman et al. 2016, eq. 16): A_t = sum_l (gamma lam)^l delta_{t+l}."""
    following = torch.cat([values[1:], values.new_zeros(1)])
    delta = rewards + gamma * following - values
    n = len(delta)
    powers = [[(gamma * lam) ** (j - t) if j >= t else 0.0 for j in range(n)] for t in range(n)]
    return torch.tensor(powers, dtype=delta.dtype) @ delta


def whitened(advantages: list[Tensor], counted: list[bool]) -> list[Tensor]:
    """(A - mean) / std, both of the counted answers' tokens."""
    some = [a for a, c in zip(advantages, counted, strict=True) if c]
    every = torch.cat(some) if some else torch.zeros(1, dtype=torch.float64)
    mean = every.mean()
    std = max(float(((every - mean) ** 2).mean()), 1e-8) ** 0.5
    return [(a - mean) / std for a in advantages]


def group_relative(rewards: list[Tensor], size: int, per_token: bool) -> list[Tensor]:
    """GRPO (arXiv:2402.03300): section 4.1.2, one advantage per answer; 4.1.3, what the tokens from t on are worth."""
    out = []
    for first in range(0, len(rewards), size):
        group = rewards[first : first + size]
        what = torch.cat(group) if per_token else torch.stack([r.sum() for r in group])
        mean, std = what.mean(), what.std(correction=0) + 1e-6
        for r in group:
            z = (r - mean) / std
            out.append(z.flip(0).cumsum(0).flip(0) if per_token else ((r.sum() - mean) / std).expand(len(r)))
    return out


def weights_of_tokens(rho: list[Tensor], config: CorrectionConfig) -> tuple[list[Tensor], float | None]:
    """Importance weights of the policy over the sampler, cut (Ionides 2008; IcePop), and the share that was cut."""
    if config.kind == "off":
        return [torch.ones_like(r) for r in rho], None
    if config.kind == "tis":
        weights = [torch.minimum(r, torch.tensor(config.cap)) for r in rho]
    else:
        weights = [r * ((r >= config.low) & (r <= config.high)) for r in rho]
    changed = sum(int((w != r).sum()) for w, r in zip(weights, rho, strict=True))
    return weights, changed / sum(len(r) for r in rho)


def statistics(
    logp: list[Tensor], ref: list[Tensor], dpo: list[Tensor] | None, scores: list[float] | None, cut: list[bool],
    values: list[Tensor], rewards: list[Tensor], returns: list[Tensor], beta_2: float, config: RewardConfig,
) -> dict[str, float]:  # fmt: skip
    """What is logged of a rollout: of every part of the reward its mean, size and share; KL estimates; the critic."""
    answers = len(logp)
    gap = torch.cat([p - r for p, r in zip(logp, ref, strict=True)])  # log pi/pi_ref, sampled from pi
    parts = {"kl": -beta_2 * gap}
    out = {}
    if dpo is not None:
        implicit = torch.cat([d - r for d, r in zip(dpo, ref, strict=True)])
        parts["dense"] = (config.beta_1 * implicit).clamp(-config.clip, config.clip)
        if config.clip < math.inf:
            out["reward/dense_clipped"] = (config.beta_1 * implicit.abs() > config.clip).double().mean()
        out["reward/implicit_per_answer"] = implicit.sum() / answers
    if scores is not None:
        out["reward/score"] = sum(scores) / answers
        most = config.score_clip
        parts["score"] = torch.tensor([config.beta_3 * min(max(s, -most), most) for s in scores], dtype=torch.float64)
    whole = sum(float(part.abs().sum()) for part in parts.values())
    for name, part in parts.items():
        out[f"reward/{name}_mean"] = part.mean()
        out[f"reward/{name}_abs"] = part.abs().mean()
        out[f"reward/{name}_share"] = part.abs().sum() / whole if whole else 0.0
    out["reward/per_answer"] = torch.cat(rewards).sum() / answers
    # KL(pi || pi_ref): E[log pi/pi_ref], and E[pi_ref/pi - 1 - log pi_ref/pi] (joschu.net/blog/kl-approx.html)
    out["kl/per_answer"], out["kl/k1"] = gap.sum() / answers, gap.mean()
    out["kl/k3"] = ((-gap).exp() - 1 + gap).mean()
    v, r = torch.cat(values), torch.cat(returns)
    out["values/mean"] = v.mean()
    out["values/explained"] = 1 - (r - v).var(correction=0) / r.var(correction=0)
    out["answers/truncated"] = sum(cut) / answers
    return {name: float(x) for name, x in out.items()}
