"""RTO and its family from the papers' equations, whole runs: what every step logs, and the weights at the end.

Algorithm 2 of arXiv:2404.18922 with PPO's losses (arXiv:1707.06347, eq. 7), in float64, one answer at a time. The
order of prompts and mini-batches comes from the run's seed by `rto_fast.training.seeds`, as does a rollout's seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rto_fast.config import RTOConfig
from rto_fast.rollout import Completion
from rto_fast.training.seeds import derive, permutation
from tests.derivation import rewards as paid
from tests.derivation.adamw import AdamW
from tests.derivation.networks import Scalar, said
from tests.derivation.supervised import Derived, mean


@dataclass
class Networks:
    policy: nn.Module
    reference: nn.Module
    dpo: nn.Module | None
    critic: Scalar | None
    """Of its own, or a head on the policy's trunk; None = none"""


@dataclass
class Task:
    """What a stage is given."""

    prompts: list[list[int]]
    rollout: Callable[[list[list[int]], int], list[Completion]]
    """Answers to prompts, from a seed."""
    judge: Callable[[list[Completion]], list[float]] | None
    ends: frozenset[int]
    """Tokens that end a sentence"""
    seed: int


@dataclass
class Learned:
    """One answer, and what an update needs of it."""

    answer: Completion
    logp: Tensor
    ref: Tensor
    value: Tensor
    advantage: Tensor
    back: Tensor
    """The value function's target"""


def member(config: RTOConfig, stage: str) -> RTOConfig:
    """Section 5.1's rivals as settings of one formula."""
    reward, weight = config.reward, config.reward.beta_3 or config.score_weight
    if stage == "rto":
        return config
    if stage in ("semi_rto", "sparse_dpo"):
        return replace(config, reward=replace(reward, granularity={"semi_rto": "sentence"}.get(stage, "response")))
    if stage == "rs_ppo":
        return replace(config, reward=replace(reward, shaping_only=True, beta_3=weight))
    config = replace(config, reward=replace(reward, beta_1=0.0, beta_3=weight))
    return config if stage == "ppo" else replace(config, critic=replace(config.critic, kind="group", model=None))


class Family:
    def __init__(self, nets: Networks, task: Task, config: RTOConfig):
        self.nets, self.task, self.config = nets, task, config
        self.grouped = config.critic.kind == "group"
        self.each = config.group if self.grouped else 1
        self.asked = config.rollouts // self.each
        self.iterations = config.iterations or max(1, math.ceil(config.epochs * len(task.prompts) / self.asked))
        networks = {"policy": ([nets.policy], config.optim.lr)}
        if config.critic.kind == "shared":
            networks["policy"] = [nets.policy, nets.critic.head], config.optim.lr
        elif not self.grouped:
            networks["critic"] = [nets.critic.backbone, nets.critic.head], config.critic.lr
        steps = self.iterations * config.ppo_epochs * math.ceil(config.rollouts / config.minibatch)
        self.optimizer = AdamW(networks, config.optim, steps)
        self.beta_2 = config.reward.beta_2
        self.log: list[dict[str, float]] = []

    def run(self) -> Derived:
        for iteration in range(self.iterations):
            self._iteration(iteration)
        return Derived(self.log, [p for ps, _ in self.optimizer.networks.values() for p in ps])

    def _iteration(self, k: int) -> None:
        config, task = self.config, self.task
        count = len(task.prompts)
        places = range(k * self.asked, (k + 1) * self.asked)
        orders = {p: permutation(count, task.seed, "prompts", p) for p in {i // count for i in places}}
        asked = [task.prompts[orders[i // count][i % count]] for i in places]
        answers = task.rollout([p for p in asked for _ in range(self.each)], derive(task.seed, "rollout", k))
        experience, said_of_it = self._score(answers)
        said_of_it |= {"iteration": k + 1, "answers/total": (k + 1) * config.rollouts}
        masked = [config.reward.truncated == "mask" and a.finish == "length" for a in answers]
        for epoch in range(config.ppo_epochs):
            order, moved = permutation(len(answers), task.seed, "rto", k, epoch), []
            for start in range(0, len(order), config.minibatch):
                chosen = [experience[i] for i in order[start : start + config.minibatch] if not masked[i]]
                if chosen:
                    losses = self._losses(chosen, critic_only=k < config.critic.warmup_iterations)
                    moved.append((float(losses.get("k3", 0.0)), self._size(chosen)))
                    losses["loss"].backward()
                    self.log.append(
                        said_of_it | {n: float(x.detach()) for n, x in losses.items()} | self.optimizer.step()
                    )
                    said_of_it = {}
            if config.stop_kl is not None and moved:
                if sum(k3 * size for k3, size in moved) / sum(size for _, size in moved) > config.stop_kl:
                    break
        target = config.reward.adaptive_kl_target
        if target is not None:  # Ziegler et al. 2019, section 2.2
            error = min(max((self.kl - target) / target, -0.2), 0.2)
            self.beta_2 *= 1 + error * len(answers) / config.reward.adaptive_kl_horizon

    def _size(self, chosen: list[Learned]) -> int:
        """What a mean is over: tokens or answers."""
        return sum(len(x.answer.response) for x in chosen) if self.config.average == "token" else len(chosen)

    @torch.no_grad()
    def _score(self, answers: list[Completion]) -> tuple[list[Learned], dict[str, float]]:
        config, nets, reward = self.config, self.nets, self.config.reward
        logp, ref = ([x.logprobs for x in said(m, answers)] for m in (nets.policy, nets.reference))
        dpo = [x.logprobs for x in said(nets.dpo, answers)] if reward.beta_1 else None
        values = nets.critic.values(answers) if nets.critic else [torch.zeros_like(x) for x in logp]
        scores = self.task.judge(answers) if reward.beta_3 else None
        cut = [a.finish == "length" for a in answers]
        beta_2 = 0.0 if self.grouped else self.beta_2  # within groups the KL is part of the loss
        rewards = []
        for i, a in enumerate(answers):
            dense = paid.dense(dpo[i], ref[i], reward) if dpo else None
            ends = [token in self.task.ends for token in a.response]
            score = scores[i] if scores else None
            rewards.append(paid.token_rewards(logp[i], ref[i], dense, ends, score, cut[i], beta_2, reward))
        raw = [paid.advantages(r, v, config.gamma, config.lam) for r, v in zip(rewards, values, strict=True)]
        back = [a + v for a, v in zip(raw, values, strict=True)]
        if self.grouped:
            advantages = paid.group_relative(rewards, self.each, dpo is not None and reward.granularity != "response")
        else:
            advantages = paid.whitened(raw, [not (c and reward.truncated == "mask") for c in cut])
        stats = paid.statistics(logp, ref, dpo, scores, cut, values, rewards, back, beta_2, reward)
        self.kl = stats["kl/per_answer"]
        rho = [(x - torch.tensor(a.logprobs).double()).exp() for x, a in zip(logp, answers, strict=True)]
        gaps, all_rho = torch.cat(rho).log().abs(), torch.cat(rho)
        weights, cut = paid.weights_of_tokens(rho, config.correction)
        advantages = [a * w for a, w in zip(advantages, weights, strict=True)]
        stats |= {
            "beta_2": self.beta_2,
            "answers/length": sum(len(a.response) for a in answers) / len(answers),
            "sampler_gap/mean": float(gaps.mean()),
            "sampler_gap/max": float(gaps.max()),
            "sampler_gap/ess": float(all_rho.mean() ** 2 / (all_rho**2).mean()),
        }
        if cut is not None:
            stats["sampler_gap/cut"] = cut
        if self.task.judge:
            judged = self.task.judge(answers)
            stats["judge/return"] = sum(judged) / len(judged)
        columns = zip(answers, logp, ref, values, advantages, back, strict=True)
        return [Learned(*row) for row in columns], stats

    def _losses(self, chosen: list[Learned], critic_only: bool) -> dict[str, Tensor]:
        config, answers, out = self.config, [x.answer for x in chosen], {}
        loss = 0.0
        if not critic_only:
            each: dict[str, list[Tensor]] = {"policy_loss": [], "ratio_gap": [], "clipped": [], "k3": []}
            for x, now in zip(chosen, said(self.nets.policy, answers), strict=True):
                ratio = (now.logprobs - x.logp).exp()
                near = ratio.clamp(1 - config.clip, 1 + config.clip)
                surrogate = torch.min(ratio * x.advantage, near * x.advantage)
                objective = surrogate + config.entropy_coef * now.entropy
                if self.grouped:  # eq. 4 of arXiv:2402.03300
                    away = x.ref - now.logprobs
                    objective = objective - self.beta_2 * (away.exp() - away - 1)
                each["policy_loss"].append(-objective)
                each["ratio_gap"].append((ratio - 1).abs().detach())
                each["clipped"].append(((ratio > 1 + config.clip) | (ratio < 1 - config.clip)).double())
                each["k3"].append((ratio - 1 - ratio.log()).detach())
            out = {name: mean(x, config.average) for name, x in each.items()}
            loss = out["policy_loss"]
        if self.nets.critic:
            each_value, most = [], config.critic.clip
            for x, v in zip(chosen, self.nets.critic.values(answers), strict=True):
                near = x.value + (v - x.value).clamp(-most, most)
                each_value.append(torch.max((v - x.back) ** 2, (near - x.back) ** 2) / 2)
            out["value_loss"] = mean(each_value, config.average)
            loss = loss + config.critic.coef * out["value_loss"]
        return {"loss": loss, **out}
