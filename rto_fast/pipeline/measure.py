"""What a run says of its policies when they are trained: every one's answers to held-out prompts, judged."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rto_fast.config import RTOConfig, member
from rto_fast.evaluate.answers import write_answers, write_samples
from rto_fast.evaluate.heatmap import to_json
from rto_fast.evaluate.policies import Evaluation, evaluate, interval, preference_accuracy, win_rates
from rto_fast.evaluate.stats import credit_auc, mean_estimate, wins
from rto_fast.evaluate.tables import print_sweep, print_table
from rto_fast.evaluate.token_rewards import TokenRewards
from rto_fast.files.digests import write_recorded
from rto_fast.judges import Judge
from rto_fast.judges.choose import reward_model, scorer_of
from rto_fast.model.language import LanguageModel
from rto_fast.pipeline.networks import frozen_on
from rto_fast.rollout import Completion, Sampling
from rto_fast.runs.open import Context
from rto_fast.training import mesh
from rto_fast.training.progress import progress
from rto_fast.training.stall import StallGuard

MAPS = 6
"""Prompts whose answers are drawn as heat maps."""


def evaluate_run(context: Context, say: Callable[[str], None]) -> dict[str, Any]:
    """Every policy of the run, its table, samples.md and answers.jsonl; what results.json holds of it."""
    config = context.config
    reference, dpo, score = _yardsticks(context)
    evaluations: dict[str, Evaluation] = {}
    stages = [stage for stage in config.stages if stage != "rm"]
    count = len(context.corpus.evaluation[: config.eval.prompts])
    with (
        progress(len(stages) * count, "answer") as bar,
        StallGuard(config.guards.stall_minutes, "evaluation") as stall,
    ):

        def logged(more: int) -> None:
            bar.update(more)
            stall.alive(f"{bar.n}/{bar.total} answers")

        for stage in stages:
            path = context.stage_path(stage)
            policy = {"sft": reference, "dpo": dpo}.get(stage) or frozen_on(
                context, reference, path, "model.path", stage
            )
            evaluations[stage] = _measure(context, policy, reference, dpo, score, logged)
    results: dict[str, Any] = {
        "policies": {name: e.summary() for name, e in evaluations.items()},
        "win_rate": win_rates(evaluations),
        "judge": next(iter(evaluations.values())).judge,
    }
    held_out = context.corpus.held_out
    with context.precision():
        if dpo is not None and len(held_out) > 1:
            results["preference_accuracy"] = interval(preference_accuracy(dpo, reference, held_out, **context.limits))
        if score is not None and len(held_out) > 1:
            results["score_accuracy"] = _score_accuracy(context, score)
        if dpo is not None:
            scorer = TokenRewards(dpo, reference, context.tokenizer, config.dpo.beta, **context.limits)
            results |= _credit(context, evaluations, scorer)
    write_samples(context.folder / "samples.md", context.tokenizer, evaluations, config.eval.samples)
    write_answers(context.folder / "answers.jsonl", context.tokenizer, evaluations, config.eval.samples)
    print_table(results, say)
    return results


def _yardsticks(context: Context) -> tuple[LanguageModel, LanguageModel | None, Judge | None]:
    """pi_ref, pi_dpo and a sentence score (the reward model's, else what a stage was paid by), as far as there are."""
    config = context.config
    reference = context.load(context.stage_path("sft"), "sft.model")
    dpo = None
    if "dpo" in config.stages or config.dpo.model:
        dpo = frozen_on(context, reference, context.stage_path("dpo"), "dpo.model", "dpo")
    if "rm" in config.stages or config.rm.model:
        return reference, dpo, reward_model(context)
    paid = (scorer_of(context, member(config.rto, stage)) for stage in config.members)
    return reference, dpo, next((scorer for scorer in paid if scorer), None)


def _measure(
    context: Context,
    policy: LanguageModel,
    reference: LanguageModel,
    dpo: LanguageModel | None,
    score: Judge | None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    config, oracle = context.config, context.oracle
    with context.precision():  # of one policy: autocast keeps every weight that it has cast until the context ends
        return evaluate(
            policy,
            reference=reference,
            dpo=dpo,
            beta=config.dpo.beta,
            prompts=context.corpus.evaluation[: config.eval.prompts],
            sampling=Sampling(config.eval.temperature, None, config.eval.top_p, config.max_new_tokens),
            eos_token_ids=context.eos_token_ids,
            seed=config.seed,
            batch_size=config.rto.sampling.batch_size,
            oracle=None if oracle is None else oracle.answer_return,
            score=None if score is None else (lambda answers: np.array(score(answers))),
            progress=progress,
            **context.limits,
        )


def _score_accuracy(context: Context, score: Judge) -> dict[str, float]:
    """Share of held-out pairs whose chosen answer the reward model scores higher; a tie counts one half."""
    pairs = context.corpus.held_out
    answers = [Completion(p.prompt, response, [], "eos") for p in pairs for response in (p.chosen, p.rejected)]
    scores = np.array(score(answers)).reshape(-1, 2)
    return interval(mean_estimate(wins(scores[:, 0], scores[:, 1])))


def _credit(context: Context, evaluations: dict[str, Evaluation], scorer: TokenRewards) -> dict[str, Any]:
    """heatmaps.json: the first answers of the first and the last policy; and DPO's AUC where the truth is known."""
    oracle, maps = context.oracle, []
    names = list(dict.fromkeys((next(iter(evaluations)), list(evaluations)[-1])))
    shown = [
        (f"{name}, prompt {i + 1}", evaluations[name].answers[i])
        for i in range(MAPS)
        for name in names
        if i < len(evaluations[name].answers)
    ]
    rewards = scorer.rewards([answer for _, answer in shown])
    for (title, answer), values in zip(shown, rewards, strict=True):
        known = None if oracle is None else oracle.answer_signs(answer.prompt, answer.response)
        maps.append(scorer.heatmap(title, answer, values.tolist(), known))
    write_recorded(context.folder / "heatmaps.json", to_json(maps))
    if oracle is None:
        return {}
    answers = evaluations[names[0]].answers
    signs = [oracle.answer_signs(a.prompt, a.response) for a in answers]
    every = np.concatenate(signs)
    if every.max(initial=0) <= 0 or every.min(initial=0) >= 0:
        context.say(f"No AUC of the token rewards: {names[0]}'s answers hold no right or no wrong tokens")
        return {}
    return {"credit_auc": interval(credit_auc(scorer.rewards(answers), signs))}


def sweep(
    context: Context, train: Callable[[RTOConfig, str], LanguageModel], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Short RTO runs over b1/b2 and c, by train(config, name): what each gains, and where it over-optimises."""
    config = context.config
    yardsticks = _yardsticks(context) if mesh.is_first() else None
    rows = []
    for ratio in config.sweep.ratios:
        for clip in config.sweep.clips:
            reward = replace(config.rto.reward, beta_2=config.rto.reward.beta_1 / ratio, clip=clip)
            settings = replace(config.rto, reward=reward, iterations=config.sweep.iterations)
            policy = train(settings, f"sweep-{ratio:g}-{clip:g}")
            if yardsticks is None:  # another rank trains along
                continue
            summary = _measure(context, policy, *yardsticks).summary()
            setting = {"ratio": ratio, "beta_1": reward.beta_1, "beta_2": reward.beta_2}
            # JSON has no infinity
            rows.append({**setting, "clip": clip if math.isfinite(clip) else None, **summary})
    print_sweep(rows, say)
    return rows
