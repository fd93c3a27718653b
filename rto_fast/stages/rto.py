"""Reinforced Token Optimization: PPO on the token rewards of a DPO model.

Each iteration (algorithm 2 of arXiv:2404.18922):
  1. answer prompts with the current policy                                    rollout
  2. log-probs of policy, reference and DPO model, token rewards (eq. 4.6)
     and GAE of each pack in one call                                          score
  3. whitening over the whole rollout                                          whiten
  4. epochs of mini-batches of the clipped PPO loss and the value loss         loss

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rto_fast.config import GuardConfig, RTOConfig
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.model.language import Head, LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import PackedBatch, Rows, cumulative, microbatches, pack, segment_gather
from rto_fast.rl.experience import COLUMNS, Experience, from_tensors
from rto_fast.rl.groups import group_relative
from rto_fast.rl.losses import value_loss
from rto_fast.rl.rewards import check_finite, reward_spec, reward_statistics, whiten
from rto_fast.rl.score import Scores, score
from rto_fast.rollout import Completion, Sampling, rollout
from rto_fast.training.loop import Step, TrainState
from rto_fast.training.seeds import derive, permutation

Judge = Callable[[list[Completion]], list[float]]
"""One number per answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    packed: PackedBatch
    rows: Rows
    weights: Tensor
    """(R,) float32, as are the next five"""
    old_logprobs: Tensor
    reference: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    critic_only: bool


class RTO:
    """PPO iterations as optimizer steps. What changes from iteration to iteration is in `state`."""

    def __init__(
        self,
        policy: LanguageModel,
        reference: LanguageModel,
        dpo: LanguageModel | None,
        critic: ScalarModel | None,
        prompts: list[list[int]],
        config: RTOConfig,
        state: TrainState,
        *,
        eos_token_ids: tuple[int, ...],
        max_new_tokens: int,
        seed: int,
        microbatch_rows: int,
        workspace_mb: int | None,
        device: torch.device,
        guards: GuardConfig = GuardConfig(),  # noqa: B008  (frozen)
        scorer: Judge | None = None,
        watch: Judge | None = None,
        sentence_end_ids: frozenset[int] = frozenset(),
    ):
        """`critic=None`: the policy's own value head (a shared trunk), or none at all with critic.kind = "group".
        `dpo=None` needs beta_1 = 0, `scorer=None` beta_3 = 0. `watch` judges every rollout for the learning curve.
        """
        if dpo is None and config.reward.beta_1:
            raise ValueError(
                f"rto: beta_1 = {config.reward.beta_1} needs a DPO model; run the dpo stage or give --dpo.model"
            )
        if scorer is None and config.reward.beta_3:
            raise ValueError(f"rto: beta_3 = {config.reward.beta_3} needs a sentence score; see --rto.score and --rm")
        self.grouped = config.critic.kind == "group"
        if critic is None and policy.value_head is None and not self.grouped:
            raise ValueError("rto: without a critic the policy needs a value head: call policy.add_value_head()")
        self.policy = policy.train()
        self.reference, self.dpo = (m.eval().requires_grad_(False) if m is not None else None for m in (reference, dpo))
        self.scorer, self.watch, self.guards = scorer, watch, guards
        self.critic = critic.train() if critic is not None else None
        self.prompts = prompts
        self.config = config
        self.state = state
        self.eos_token_ids = eos_token_ids
        self.sampling = Sampling(
            config.sampling.temperature, config.sampling.top_k, config.sampling.top_p, max_new_tokens
        )
        self.seed = seed
        self.microbatch_rows = microbatch_rows
        self.workspace_mb = workspace_mb
        self.device = device
        self.sentence_end_ids = sentence_end_ids
        self._updating: float | None = None
        """When the last update began, by the clock."""
        self.note: Callable[[str], None] = lambda text: None
        """Logs what goes on between two steps."""
        self.num_prompts = config.rollouts // (config.group if self.grouped else 1)
        """Prompts of an iteration."""
        self.iterations = config.iterations or max(1, math.ceil(config.epochs * len(prompts) / self.num_prompts))
        self.num_steps = self.iterations * config.ppo_epochs * math.ceil(config.rollouts / config.minibatch)
        state.progress.setdefault("beta_2", config.reward.beta_2)

    def steps(self) -> Iterator[Step]:
        """From where state.progress says: the iteration, and within its rollout the epoch and the first answer."""
        progress, tensors = self.state.progress, self.state.tensors
        for iteration in range(int(progress.get("iteration", 0)), self.iterations):
            progress["iteration"] = iteration
            metrics: dict[str, Tensor | float] = {}
            if "offsets" in tensors:  # in the middle of an iteration
                experience = from_tensors(tensors, self.device)
            else:
                experience, metrics = self._roll_out(iteration)
                tensors |= experience.tensors()
                progress["epoch"] = progress["place"] = 0
            for epoch in range(int(progress["epoch"]), self.config.ppo_epochs):
                progress["epoch"] = epoch
                if progress["place"] == 0:
                    tensors["moved"] = torch.zeros(2, device=self.device)
                tensors["moved"] = tensors["moved"].to(self.device)
                order = permutation(len(experience.answers), self.seed, "rto", iteration, epoch)
                for start in range(int(progress["place"]), len(order), self.config.minibatch):
                    chosen = order[start : start + self.config.minibatch]
                    step = self._step(experience, chosen, metrics, iteration)
                    progress["place"] = start + self.config.minibatch
                    if step.total:  # else every answer of this mini-batch is masked out
                        yield step
                        metrics = {}
                progress["place"] = 0
                if self.config.stop_kl is not None and self._mean_k3() > self.config.stop_kl:
                    break
            self._adapt_beta_2(len(experience.answers))
            tensors.clear()
            progress["iteration"] = iteration + 1

    def _roll_out(self, iteration: int) -> tuple[Experience, dict[str, Tensor | float]]:
        """An iteration's answers, scored, and what there is to say about them."""
        started = time.perf_counter()
        answers = self._answer(iteration)
        rolled_out = time.perf_counter()
        experience, metrics = self._score(answers)
        scored = time.perf_counter()
        metrics |= {
            "iteration": iteration + 1,
            "answers/total": (iteration + 1) * self.config.rollouts,
            "time/rollout": rolled_out - started,
            "time/score": scored - rolled_out,
        }
        if self._updating is not None:
            metrics["time/update"] = started - self._updating
        self._updating = scored
        return experience, metrics

    def _mean_k3(self) -> float:
        """How far the last pass found the policy from the one that sampled, nats per token."""
        k3, weight = self.state.tensors["moved"].tolist()
        return k3 / weight if weight > 0 else 0.0

    def _answer(self, iteration: int) -> list[Completion]:
        """Answers to the next prompts; each pass over the prompts is in a new order."""
        count = self.num_prompts
        first = iteration * count
        passes = range(first // len(self.prompts), (first + count - 1) // len(self.prompts) + 1)
        order = [i for p in passes for i in permutation(len(self.prompts), self.seed, "prompts", p)]
        skip = first - passes[0] * len(self.prompts)
        done = 0

        def progress(more: int) -> None:
            nonlocal done
            done += more
            self.note(f"{done}/{self.config.rollouts} answers")

        return rollout(
            self.policy.hf,
            [self.prompts[i] for i in order[skip : skip + count] for _ in range(self.config.rollouts // count)],
            self.sampling,
            self.eos_token_ids,
            seed=derive(self.seed, "rollout", iteration),
            max_batch=self.config.sampling.batch_size,
            progress=progress,
        )

    def _scores(self, answers: list[Completion], sentence_scores: Tensor | None, truncated: Tensor) -> Scores:
        """Every model's scores and the rewards of all response rows, in the order of the answers."""
        order, parts, config = [], [], self.config
        for group in microbatches([len(a.prompt) + len(a.response) - 1 for a in answers], self.microbatch_rows):
            chosen = [answers[i] for i in group]
            packed, rows = self._pack(chosen)
            reward = reward_spec(
                config.reward,
                beta_2=self._reward_beta_2(),
                gamma=config.gamma,
                lam=config.lam,
                sentence_scores=None if sentence_scores is None else sentence_scores[group],
                truncated=truncated[group],
                sentence_ends=self._sentence_ends(chosen) if config.reward.granularity == "sentence" else None,
            )
            parts.append(
                score(
                    packed,
                    rows,
                    policy=self.policy,
                    reference=self.reference,
                    dpo=self.dpo if config.reward.beta_1 else None,
                    critic=self.critic,
                    reward=reward,
                    workspace_mb=self.workspace_mb,
                )
            )
            order += group
        # back from the order of the packing, so that mini-batches do not depend on microbatch_rows
        place = sorted(range(len(order)), key=order.__getitem__)
        at = segment_gather(cumulative([len(answers[i].response) for i in order]), place).to(self.device)

        def column(name: str) -> Tensor | None:
            pieces = [getattr(part, name) for part in parts]
            if pieces[0] is None:
                return None
            return torch.cat(pieces)[torch.tensor(place, device=self.device) if name == "moments" else at]

        return Scores(*map(column, Scores.__slots__))

    @torch.no_grad()
    def _score(self, answers: list[Completion]) -> tuple[Experience, dict[str, Tensor | float]]:
        reward = self.config.reward
        truncated = torch.tensor([a.finish == "length" for a in answers], device=self.device)
        sentence_scores = None
        if reward.beta_3:
            self.note("sentence scores")
            sentence_scores = torch.tensor(self.scorer(answers), dtype=torch.float32, device=self.device)
        scores = self._scores(answers, sentence_scores, truncated)
        check_finite(scores, sentence_scores, reward)
        offsets = cumulative([len(a.response) for a in answers])
        cu_seqlens = offsets.to(self.device)
        statistics = reward_statistics(
            scores,
            cu_seqlens,
            reward,
            beta_2=self._reward_beta_2(),
            sentence_scores=sentence_scores,
            truncated=truncated,
        )
        metrics: dict[str, Tensor | float] = {**statistics, **self._answer_statistics(answers, scores)}
        metrics["beta_2"] = self.state.progress["beta_2"]
        if self.watch is not None:
            # the reward model has just been asked
            judged = sentence_scores.tolist() if self.watch is self.scorer and reward.beta_3 else self.watch(answers)
            metrics["judge/return"] = sum(judged) / len(judged)
        self.state.progress["kl"] = float(statistics["kl/per_answer"])
        if self.grouped:
            per_token = bool(reward.beta_1) and reward.granularity != "response"
            advantages = group_relative(scores.rewards, cu_seqlens, self.config.group, per_token)
        else:
            advantages = whiten(scores)
        masked = truncated if reward.truncated == "mask" else torch.zeros_like(truncated)
        weights = (~masked).float().tolist()
        if self._drifted(float(statistics["kl/per_answer"]), metrics):
            weights = [0.0] * len(answers)
        columns = (scores.policy, scores.reference, scores.values, advantages, scores.returns)
        return Experience(answers, offsets, weights, *columns), metrics

    def _drifted(self, kl: float, metrics: dict[str, Tensor | float]) -> bool:
        """Whether the policy is so far from pi_ref that this rollout is not to be learned from. May raise."""
        limit, action = self.guards.kl, self.guards.kl_action
        if limit is None or kl <= limit:
            return False
        if action == "stop":
            raise FloatingPointError(
                f"guards.kl: the policy is {kl:.3g} nats per answer from pi_ref, above {limit:g}; the newest "
                "checkpoint is from before this rollout: raise beta_2, lower rto.optim.lr, or raise the limit"
            )
        metrics["guard/kl"] = kl
        return action == "skip"

    def _reward_beta_2(self) -> float:
        """The KL's weight in the reward; within groups the KL is part of the loss."""
        return 0.0 if self.grouped else self.state.progress["beta_2"]

    def _answer_statistics(self, answers: list[Completion], scores: Scores) -> dict[str, Tensor | float]:
        sampled = torch.tensor([p for a in answers for p in a.logprobs], device=self.device)
        gap = (sampled - scores.policy).abs()
        return {
            "answers/length": sum(len(a.response) for a in answers) / len(answers),
            "sampler_gap/mean": gap.mean(),
            "sampler_gap/max": gap.max(),
        }

    def _adapt_beta_2(self, count: int) -> None:
        """Proportional controller of Ziegler et al. 2019, section 2.2 (arXiv:1909.08593): the next iteration's beta_2.

        It follows an iteration's last step, so that one beta_2 weighs all of an iteration, its rewards as its loss.
        """
        target = self.config.reward.adaptive_kl_target
        if target is not None:
            error = min(max(self.state.progress["kl"] / target - 1, -0.2), 0.2)
            self.state.progress["beta_2"] *= 1 + error * count / self.config.reward.adaptive_kl_horizon

    def _sentence_ends(self, answers: list[Completion]) -> Tensor:
        ends = [token in self.sentence_end_ids for a in answers for token in a.response]
        return torch.tensor(ends, device=self.device)

    def _pack(self, answers: list[Completion]) -> tuple[PackedBatch, Rows]:
        packed, rows = pack([a.prompt for a in answers], [a.response for a in answers], self.config.average)
        return packed.to(self.device), rows.to(self.device)

    def _step(self, experience: Experience, chosen: list[int], metrics: dict, iteration: int) -> Step:
        answers, weights = experience.answers, experience.weights
        chosen = [i for i in chosen if weights[i] > 0]
        batches = []
        for group in microbatches(
            [len(answers[i].prompt) + len(answers[i].response) - 1 for i in chosen], self.microbatch_rows
        ):
            items = [chosen[g] for g in group]
            packed, rows = self._pack([answers[i] for i in items])
            at = segment_gather(experience.offsets, items).to(self.device)
            batches.append(
                Batch(
                    packed,
                    rows,
                    packed.weights[rows.index],
                    *(getattr(experience, n)[at] for n in COLUMNS),
                    critic_only=iteration < self.config.critic.warmup_iterations,
                )
            )
        per_token = self.config.average == "token"
        return Step(batches, sum(len(answers[i].response) if per_token else 1 for i in chosen), metrics)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        packed, rows, weights = batch.packed, batch.rows, batch.weights
        config = self.config

        def head_rows(hidden: Tensor, head: Head):
            hidden = hidden[rows.index]
            own = self.policy.value_head(hidden.float())[:, 0] if self.policy.value_head is not None else None
            if batch.critic_only:
                return None, own
            out = ppo_head(
                hidden,
                head.weight,
                packed.target_ids[rows.index],
                batch.old_logprobs,
                batch.advantages,
                weights,
                clip=config.clip,
                entropy_coef=config.entropy_coef,
                kl_coef=self.state.progress["beta_2"] if self.grouped else 0.0,
                ref_logprobs=batch.reference,
                workspace_mb=self.workspace_mb,
                **head.options(),
            )
            return out, own

        out, values = (None, None) if batch.critic_only and self.critic is not None else self.policy(packed, head_rows)
        if self.critic is not None:
            values = self.critic(packed, rows.index)
        loss, stats = torch.zeros((), device=self.device), {}
        if values is not None:
            values_loss = value_loss(values, batch.old_values, batch.returns, weights, config.critic.clip)
            loss = config.critic.coef * values_loss
            stats["value_loss"] = values_loss.detach()
        if out is not None:
            loss = loss + out.loss
            stats |= self._policy_statistics(out, batch)
        return loss, stats

    def _policy_statistics(self, out, batch: Batch) -> dict[str, Tensor]:
        log_ratio = out.logprobs - batch.old_logprobs
        ratio = log_ratio.exp()
        k3 = ((ratio - 1 - log_ratio) * batch.weights).sum()
        tensors = self.state.tensors
        tensors["moved"] = tensors.get("moved", 0.0) + torch.stack((k3, batch.weights.sum()))
        return {
            "policy_loss": out.loss.detach(),
            "ratio_gap": ((ratio - 1).abs() * batch.weights).sum(),
            "clipped": (((ratio - 1).abs() > self.config.clip).float() * batch.weights).sum(),
            "k3": k3,
        }
