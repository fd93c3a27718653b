"""Reinforced Token Optimization: PPO on the token rewards of a DPO model.

Each iteration (algorithm 2 of arXiv:2404.18922):
  1. answers of the current policy, with the token rewards of eq. 4.6, values and advantages    rl/collect.py
  2. epochs of mini-batches of the clipped PPO loss and the value loss                          losses

    loss = sum_t w_t [max(-A_t r_t, -A_t clip(r_t, 1 +- eps)) - entropy_coef H_t] + coef * value loss,   r_t = pi/pi_old

The same stage, by configuration (`config.member`), is PPO on a sentence score, sparse DPO, Semi-RTO, RS-PPO and, with
critic.kind = "group", GRPO: no values, advantages within the answers to one prompt (`groups`), the KL in the loss.

Departures from the paper, each by configuration: 1. a bound c on the token reward (the authors' code has it); 2. a
reward model's score at the last token (its later versions); 3. a penalty for, or masking of, answers cut off at the
limit, which the authors' code ends with an EOS that was never sampled; 4. an adaptive beta_2; 5. early stopping of an
iteration.
"""

import math
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rto_fast.kernels.ppo_head import PPOHead, ppo_head
from rto_fast.model.language import Head
from rto_fast.rl.collect import Collector
from rto_fast.rl.experience import Batch, Experience, from_tensors
from rto_fast.rl.losses import value_loss
from rto_fast.rl.rewards import next_beta_2
from rto_fast.training import mesh
from rto_fast.training.loop import Note, Step, TrainState, silent
from rto_fast.training.seeds import permutation


class RTO:
    """PPO iterations as optimizer steps. What changes from iteration to iteration is in `state`."""

    def __init__(self, collector: Collector, state: TrainState):
        self.collector, self.config, self.state = collector, collector.config, state
        self.policy, self.critic = collector.models.policy.train(), collector.models.critic
        if self.critic is not None:
            self.critic.train()
        self.note: Note = silent
        config = self.config
        passes = math.ceil(config.epochs * len(collector.prompts) / collector.num_prompts)
        self.iterations = config.iterations or max(1, passes)
        self.num_steps = self.iterations * config.ppo_epochs * math.ceil(config.rollouts / config.minibatch)
        self._collected: float | None = None
        """When the last experience was there, by the clock."""
        state.progress.setdefault("beta_2", config.reward.beta_2)

    def steps(self) -> Iterator[Step[Batch]]:
        """From where state.progress says: the iteration, and within its rollout the epoch and the first answer."""
        progress, tensors, config = self.state.progress, self.state.tensors, self.config
        for iteration in range(int(progress.get("iteration", 0)), self.iterations):
            progress["iteration"] = iteration
            experience, metrics = self._experience(iteration)
            for epoch in range(int(progress["epoch"]), config.ppo_epochs):
                progress["epoch"] = epoch
                if progress["place"] == 0:
                    tensors["moved"] = torch.zeros(2, device=self.collector.device)
                tensors["moved"] = tensors["moved"].to(self.collector.device)
                order = permutation(len(experience.kept), self.collector.seed, "rto", iteration, epoch)
                for start in range(int(progress["place"]), len(order), config.minibatch):
                    step = self._step(experience, order[start : start + config.minibatch], metrics)
                    progress["place"] = start + config.minibatch
                    if step.total:  # else every answer of this mini-batch is masked out
                        yield step
                        metrics = {}
                progress["place"] = 0
                if config.stop_kl is not None and self._mean_k3() > config.stop_kl:
                    break
            # after an iteration's last step, so that one beta_2 weighs all of it, its rewards as its loss
            progress["beta_2"] = next_beta_2(config.reward, progress["beta_2"], progress["kl"], config.rollouts)
            tensors.clear()
            progress["iteration"] = iteration + 1

    def _experience(self, iteration: int) -> tuple[Experience, dict[str, Tensor | float]]:
        """The saved experience in the middle of an iteration, else a new one with its metrics."""
        progress, tensors = self.state.progress, self.state.tensors
        if "old_logprobs" in tensors:
            return from_tensors(tensors, self.collector.device), {}
        started = time.perf_counter()
        experience, metrics = self.collector.collect(iteration, progress["beta_2"], self.note)
        if self._collected is not None:
            metrics["time/update"] = started - self._collected
        self._collected = time.perf_counter()
        progress["kl"] = float(metrics["kl/per_answer"])
        progress["epoch"] = progress["place"] = 0
        tensors |= experience.tensors()
        return experience, metrics

    def _step(self, experience: Experience, answers: list[int], metrics: dict[str, Tensor | float]) -> Step[Batch]:
        kept = [i for i in answers if experience.kept[i]]
        lengths = experience.packed.response_lengths
        total = sum(lengths[i] for i in kept) if self.config.average == "token" else len(kept)
        lengths = experience.packed.lengths
        groups, idle = mesh.share([lengths[i] for i in kept], self.collector.microbatch_rows)
        batches = experience.batches([[kept[i] for i in group] for group in groups])
        return Step(batches, total, metrics, idle, partial(self._moved, total))

    def _moved(self, total: float, sums: dict[str, Tensor]) -> None:
        """Add a step's k3, and its weight, to those of the pass."""
        if "k3" in sums:
            self.state.tensors["moved"] += torch.stack((sums["k3"], sums["k3"].new_tensor(total)))

    def losses(self, batch: Batch, total: float) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The policy's, with the value loss where they share weights; then that of a critic of its own."""
        packed, config, policy = batch.packed, self.config, self.policy
        critic_only = self.state.progress["iteration"] < config.critic.warmup_iterations

        def head_rows(hidden: Tensor, head: Head) -> tuple[PPOHead | None, Tensor | None]:
            hidden = packed.responses(hidden)
            own = policy.value_head(hidden.float())[:, 0] if policy.value_head is not None else None
            if critic_only:
                return None, own
            out = ppo_head(
                hidden,
                head.weight,
                packed.responses(packed.target_ids),
                batch.old_logprobs,
                batch.advantages,
                batch.weights,
                clip=config.clip,
                entropy_coef=config.entropy_coef,
                kl_coef=self.state.progress["beta_2"] if self.collector.grouped else 0.0,
                ref_logprobs=batch.ref_logprobs,
                workspace_mb=self.collector.workspace_mb,
                loss_scale=1.0 / total,
                weight_grad=policy.head_gradient(),
                **head.options(),
            )
            return out, own

        if self.critic is None or not critic_only:
            out, values = policy(packed, head_rows)
            nothing = torch.zeros((), device=batch.weights.device), dict[str, Tensor]()
            loss, stats = nothing if values is None else self._value_loss(values, batch, total)
            if out is not None:
                loss, stats = loss + out.loss, stats | self._policy_statistics(out, batch, total)
            yield loss, stats
        if self.critic is not None:
            yield self._value_loss(self.critic(packed), batch, total)

    def _value_loss(self, values: Tensor, batch: Batch, total: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss = value_loss(values, batch.values, batch.returns, batch.weights, self.config.critic.clip)
        return self.config.critic.coef * loss / total, {"value_loss": loss.detach()}

    def _policy_statistics(self, out: PPOHead, batch: Batch, total: float) -> dict[str, Tensor]:
        log_ratio = out.logprobs - batch.old_logprobs
        ratio = log_ratio.exp()
        return {
            "policy_loss": out.loss.detach() * total,
            "ratio_gap": ((ratio - 1).abs() * batch.weights).sum(),
            "clipped": (((ratio - 1).abs() > self.config.clip).float() * batch.weights).sum(),
            "k3": ((ratio - 1 - log_ratio) * batch.weights).sum(),
        }

    def _mean_k3(self) -> float:
        """How far the last pass found the policy from the one that sampled, nats per token."""
        k3, weight = self.state.tensors["moved"].tolist()
        return k3 / weight if weight > 0 else 0.0
