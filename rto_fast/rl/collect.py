"""An iteration's experience: the policy answers prompts, judges and models score the answers.

1. answer the next prompts with the current policy                             rollout
2. sentence scores, where the reward has some                                  scorer
3. log-probs of policy, reference and DPO model, token rewards (eq. 4.6) and
   GAE of each pack in one call                                                score_all
4. whitening over the whole rollout, or advantages within groups of answers    whiten, group_relative
5. weights of tokens whose sampler was not quite the policy                     corrected
"""

import time
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from rto_fast.config import GuardConfig, RTOConfig
from rto_fast.judges import Judge
from rto_fast.kernels.rto_score import RTOScore
from rto_fast.model.lend import lent
from rto_fast.packing import PackedBatch, pack
from rto_fast.rl.experience import Experience
from rto_fast.rl.groups import group_relative
from rto_fast.rl.mismatch import corrected
from rto_fast.rl.rewards import check_finite, reward_spec, reward_statistics, whiten
from rto_fast.rl.score import Models, score_all
from rto_fast.rollout import Completion, Sampling, rollout
from rto_fast.training import mesh
from rto_fast.training.loop import Note, silent
from rto_fast.training.seeds import derive, permutation

Metrics = dict[str, Tensor | float]


@dataclass(kw_only=True)
class Collector:
    """Collects experience of one member of the family (`config`). It holds nothing that changes during a run."""

    models: Models
    """The reference and the DPO model are frozen here. `dpo=None` needs beta_1 = 0."""
    prompts: list[list[int]]
    config: RTOConfig
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    microbatch_rows: int
    workspace_mb: int | None
    device: torch.device
    guards: GuardConfig = field(default_factory=GuardConfig)
    scorer: Judge | None = None
    """Gives the sentence scores; None needs beta_3 = 0."""
    watch: Judge | None = None
    """Judges every rollout for the learning curve."""
    sentence_end_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        reward, models = self.config.reward, self.models
        if models.dpo is None and reward.beta_1:
            raise ValueError(f"rto: beta_1 = {reward.beta_1} needs a DPO model; run the dpo stage or give --dpo.model")
        if self.scorer is None and reward.beta_3:
            raise ValueError(f"rto: beta_3 = {reward.beta_3} needs a sentence score; see --rto.score and --rm")
        self.grouped = self.config.critic.kind == "group"
        if models.critic is None and models.policy.value_head is None and not self.grouped:
            raise ValueError("rto: without a critic the policy needs a value head: call policy.add_value_head()")
        for frozen in (models.reference, models.dpo):
            if frozen is not None:
                frozen.eval().requires_grad_(False)
        self.num_prompts = self.config.rollouts // (self.config.group if self.grouped else 1)
        """Prompts of an iteration."""

    def collect(self, iteration: int, beta_2: float, note: Note) -> tuple[Experience, Metrics]:
        """An iteration's answers, scored, and what there is to say about them."""
        started = time.perf_counter()
        answers = self.answer(iteration, note)
        rolled_out = time.perf_counter()
        experience, metrics = self.experience(answers, beta_2, note)
        metrics |= {
            "iteration": iteration + 1,
            "answers/total": (iteration + 1) * self.config.rollouts,
            "time/rollout": rolled_out - started,
            "time/score": time.perf_counter() - rolled_out,
        }
        return experience, metrics

    def answer(self, iteration: int, note: Note = silent) -> list[Completion]:
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
            note(f"{done}/{self.config.rollouts} answers")

        sampling = self.config.sampling
        asked = [self.prompts[i] for i in order[skip : skip + count] for _ in range(self.config.rollouts // count)]
        # neighbours: answers to one prompt begin together
        ends = [len(asked) * rank // mesh.ranks() for rank in range(mesh.ranks() + 1)]
        places = range(ends[mesh.rank()], ends[mesh.rank() + 1])
        with self.models.policy.active():
            answers = rollout(
                self.models.policy.hf,
                [asked[i] for i in places],
                Sampling(sampling.temperature, sampling.top_k, sampling.top_p, self.max_new_tokens),
                self.eos_token_ids,
                seed=derive(self.seed, "rollout", iteration),
                max_batch=sampling.batch_size,
                progress=progress,
                places=places,
            )
        if mesh.ranks() == 1:
            return answers
        told = mesh.everyones([(a.response, a.logprobs, a.finish) for a in answers])
        return [Completion(p, *said) for p, said in zip(asked, chain.from_iterable(told), strict=True)]

    @torch.no_grad()
    def experience(self, answers: list[Completion], beta_2: float, note: Note = silent) -> tuple[Experience, Metrics]:
        """The answers with their rewards and advantages, and each component's statistics."""
        reward = self.config.reward
        truncated = torch.tensor([a.finish == "length" for a in answers], device=self.device)
        sentence_scores = None
        if self.scorer is not None and reward.beta_3:
            note("sentence scores")
            scorer = self.scorer
            given = mesh.first_tells(lambda: scorer(answers))
            sentence_scores = torch.tensor(given, dtype=torch.float32, device=self.device)
        packed = pack([a.prompt for a in answers], [a.response for a in answers], self.config.average)
        # within groups the KL is part of the loss
        in_reward = 0.0 if self.grouped else beta_2
        with lent((self.models.reference, self.models.dpo), self.device):
            scores = self.score(packed, in_reward, sentence_scores, truncated)
        check_finite(scores, sentence_scores, reward)
        cu_seqlens = packed.response_cu_seqlens.to(self.device)
        said = reward_statistics(
            scores, cu_seqlens, reward, beta_2=in_reward, sentence_scores=sentence_scores, truncated=truncated
        )
        metrics: Metrics = {
            **said,
            "answers/length": len(scores.values) / len(answers),
            "beta_2": beta_2,
        }
        if self.watch is not None:
            # the reward model has just been asked
            known = sentence_scores if self.watch is self.scorer else None
            watch = self.watch
            judged = mesh.first_tells(lambda: watch(answers)) if known is None else known.tolist()
            metrics["judge/return"] = sum(judged) / len(judged)
        if self.grouped:
            per_token = bool(reward.beta_1) and reward.granularity != "response"
            advantages = group_relative(scores.rewards, cu_seqlens, self.config.group, per_token)
        else:
            advantages = whiten(scores)
        sampled = torch.tensor([p for a in answers for p in a.logprobs], device=self.device)
        advantages, gap = corrected(advantages, scores.old_logprobs, sampled, self.config.correction)
        metrics |= gap
        kept = ~truncated.cpu() if reward.truncated == "mask" else torch.ones(len(answers), dtype=torch.bool)
        if self._drifted(float(metrics["kl/per_answer"]), metrics):
            kept = torch.zeros_like(kept)
        columns = (scores.old_logprobs, scores.ref_logprobs, scores.values, advantages, scores.returns)
        return Experience(packed, kept, *columns), metrics

    def score(self, packed: PackedBatch, beta_2: float, sentence_scores: Tensor | None, truncated: Tensor) -> RTOScore:
        """Every model's log-probs and the rewards of all response rows, in the order of the answers."""
        config, ends = self.config, None
        if config.reward.granularity == "sentence":
            marks = torch.tensor(sorted(self.sentence_end_ids), dtype=torch.int64)
            ends = torch.isin(packed.responses(packed.target_ids), marks).to(self.device)
        return score_all(
            self.models if config.reward.beta_1 else self.models._replace(dpo=None),
            packed,
            reward_spec(
                config.reward,
                beta_2=beta_2,
                gamma=config.gamma,
                lam=config.lam,
                sentence_scores=sentence_scores,
                truncated=truncated,
                sentence_ends=ends,
            ),
            microbatch_rows=self.microbatch_rows,
            workspace_mb=self.workspace_mb,
            device=self.device,
        )

    def _drifted(self, kl: float, metrics: Metrics) -> bool:
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
