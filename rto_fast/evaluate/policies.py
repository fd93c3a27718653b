"""Answers of a policy to held-out prompts, and their return, KL, length and implicit reward with 95 % intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.evaluate.stats import Estimate, mean_estimate, win_rate, wins
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import microbatches, pack
from rto_fast.rollout import Completion, Sampling, rollout
from rto_fast.training.seeds import derive


@dataclass(frozen=True)
class Evaluation:
    """One policy's answers and one number per answer, in the order of the prompts."""

    answers: list[Completion]
    kl: np.ndarray
    """log pi/pi_ref of the answer, nats"""
    implicit: np.ndarray | None
    """beta log pi_dpo/pi_ref of the answer: DPO's own reward"""
    oracle: np.ndarray | None
    """Return under a known oracle"""
    score: np.ndarray | None = None
    """A reward model's or a rule's score"""

    @property
    def judge(self) -> str | None:
        """What decides a comparison: an oracle, else a score, else DPO's reward, the first that there is."""
        return next(iter(self._judges), None)

    @property
    def judged(self) -> np.ndarray:
        """(answers,) values of `judge`; NaN without one."""
        return next(iter(self._judges.values()), np.full(len(self.answers), np.nan))

    @property
    def _judges(self) -> dict[str, np.ndarray]:
        found = {"oracle_return": self.oracle, "score": self.score, "implicit_reward": self.implicit}
        return {name: values for name, values in found.items() if values is not None}

    def summary(self) -> dict[str, Any]:
        lengths = np.array([len(a.response) for a in self.answers], float)
        figures = {**self._judges, "kl": self.kl, "length": lengths}
        return {
            **{name: interval(mean_estimate(values)) for name, values in figures.items()},
            "eos_rate": sum(a.finish == "eos" for a in self.answers) / len(self.answers),
            "answers": len(self.answers),
            "distinct_1": distinct(self.answers, 1),
            "distinct_2": distinct(self.answers, 2),
        }


def words(answer: Completion) -> list[int]:
    """The answer's tokens without the EOS that ended it."""
    return answer.response[:-1] if answer.finish == "eos" else answer.response


def distinct(answers: Sequence[Completion], n: int) -> float:
    """distinct-n: different n-grams over all n-grams of all answers together, EOS left out (Li et al. 2016, section 5).

    It falls as answers are added, so only equal numbers of answers compare. 0 when no answer has n tokens.
    """
    grams = [gram for a in map(words, answers) for gram in zip(*(a[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def interval(estimate: Estimate) -> dict[str, float]:
    """As results.json has it: the mean and the half-width of its 95 % interval."""
    return {"mean": estimate.value, "ci95": estimate.ci95}


def evaluate(
    policy: LanguageModel,
    *,
    reference: LanguageModel,
    dpo: LanguageModel | None,
    beta: float,
    prompts: list[list[int]],
    sampling: Sampling,
    eos_token_ids: tuple[int, ...],
    seed: int,
    batch_size: int,
    microbatch_rows: int,
    workspace_mb: int | None,
    oracle: Callable[[list[int], list[int]], float] | None = None,
    score: Callable[[list[Completion]], np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Let the policy answer every prompt and score the answers. All policies share the random numbers of `seed`.

    oracle(prompt ids, response ids) is an answer's known return; score(answers) gives a reward model's (answers,)
    scores; progress(n) is called when n more answers are finished. `kl` is the mean of log pi/pi_ref over the answers,
    which is KL(pi, pi_ref) when they are sampled from pi itself: temperature 1, top_p 1.
    """
    with policy.active():
        answers = rollout(
            policy.hf,
            prompts,
            sampling,
            eos_token_ids,
            seed=derive(seed, "evaluation"),
            max_batch=batch_size,
            progress=progress,
        )
    own, ref = (answer_logprobs(m, answers, microbatch_rows, workspace_mb) for m in (policy, reference))
    implicit = None
    if dpo is not None:
        scored = answer_logprobs(dpo, answers, microbatch_rows, workspace_mb)
        implicit = np.array([(beta * (d - r)).sum() for d, r in zip(scored, ref, strict=True)])
    return Evaluation(
        answers,
        kl=np.array([(o - r).sum() for o, r in zip(own, ref, strict=True)]),
        implicit=implicit,
        oracle=None if oracle is None else np.array([oracle(a.prompt, a.response) for a in answers]),
        score=None if score is None else np.asarray(score(answers), float),
    )


def preference_accuracy(
    dpo: LanguageModel,
    reference: LanguageModel,
    pairs: list[EncodedPair],
    *,
    microbatch_rows: int,
    workspace_mb: int | None,
) -> Estimate:
    """Share of pairs whose chosen answer has the higher log pi_dpo/pi_ref: the agreement of reward and labels.

    A tie counts one half, as in win rates.
    """
    answers = [EncodedDemonstration(p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)]
    ours, theirs = (answer_logprobs(m, answers, microbatch_rows, workspace_mb) for m in (dpo, reference))
    rewards = np.array([o.sum() - t.sum() for o, t in zip(ours, theirs, strict=True)]).reshape(-1, 2)
    return mean_estimate(wins(rewards[:, 0], rewards[:, 1]))


@torch.no_grad()
def answer_logprobs(
    model: LanguageModel,
    answers: Sequence[Completion | EncodedDemonstration],
    microbatch_rows: int,
    workspace_mb: int | None,
) -> list[np.ndarray]:
    """Each answer's (tokens,) log-probs under the model, on the host."""
    out: list[np.ndarray] = [np.zeros(0)] * len(answers)
    for group in microbatches([len(a.prompt) + len(a.response) - 1 for a in answers], microbatch_rows):
        packed = pack([answers[i].prompt for i in group], [answers[i].response for i in group])
        device = model.hf.device
        logprobs = response_logprobs(model, packed.to(device), workspace_mb).double().cpu().numpy()
        for i, part in zip(group, np.split(logprobs, packed.response_cu_seqlens[1:-1].numpy()), strict=True):
            out[i] = part
    return out


def win_rates(evaluations: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """win_rate[a][b]: how often a's answer beats b's on the same prompt, ties half; empty where nothing judges."""
    judged = all(e.judge is not None for e in evaluations.values())
    return {
        a: {b: interval(win_rate(x.judged, y.judged)) for b, y in evaluations.items() if judged and a != b}
        for a, x in evaluations.items()
    }
