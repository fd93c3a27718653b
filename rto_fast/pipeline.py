"""What a run does, in order: data, SFT, DPO, RTO, evaluation, sweep. Stages that are finished are not run again."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rto_fast import loop
from rto_fast.checkpoint import Checkpoints
from rto_fast.config import Config, RTOConfig
from rto_fast.disk import write_whole
from rto_fast.evaluate.policies import Evaluation, answer_logprobs, evaluate, interval, preference_accuracy, win_rates
from rto_fast.evaluate.report import print_sweep, print_table, write_samples
from rto_fast.export import check_export, is_finished, save_stage
from rto_fast.interrupt import Interrupt, Stopped
from rto_fast.metrics import StageLog
from rto_fast.model import LanguageModel, critic_from, load_scalar_model
from rto_fast.prepare import Context, prepare
from rto_fast.rollout import Completion, Sampling
from rto_fast.stages.dpo import DPO
from rto_fast.stages.rto import RTO
from rto_fast.stages.sft import SFT
from rto_fast.stats import credit_auc


def run(config: Config, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run a configuration whole and return what results.json holds."""
    started = time.perf_counter()
    disable_progress_bar()  # one bar per file that transformers reads or writes hides ours
    torch.manual_seed(config.seed)
    context = prepare(config, say)
    for stage in config.stages:
        _run_stage(context, stage, say)
    results: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed}
    if config.eval.prompts and context.corpus.evaluation:
        with context.precision():
            results |= _evaluate(context, say)
    if config.sweep.ratios:
        results["sweep"] = _sweep(context, say)
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_whole(context.folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    say(
        f"Finished in {results['seconds']:.0f} s. Results: {context.folder / 'results.json'}; models: "
        + ", ".join(context.stage_path(s) for s in config.stages)
    )
    return results


def _run_stage(context: Context, stage: str, say: Callable[[str], None]) -> None:
    folder = context.folder / stage
    given = {"sft": context.config.sft.model, "dpo": context.config.dpo.model}.get(stage)
    if given:
        say(f"{stage}: using {given}")
        return
    if is_finished(folder):
        say(f"{stage}: finished already, using {folder}")
        _checkpoints(context, stage).forget()  # a run may die between the two
        return
    started = time.perf_counter()
    model = {"sft": _sft, "dpo": _dpo, "rto": _rto}[stage](context)
    save_stage(folder, model, context.tokenizer, {"stage": stage, "seconds": round(time.perf_counter() - started, 1)})
    check_export(folder, model, lambda path: context.load(path))
    _checkpoints(context, stage).forget()


def _train(context: Context, name: str, stage: loop.Stage, state: loop.TrainState, optim) -> None:
    """Train a stage, from its last checkpoint where there is one."""
    checkpoints = _checkpoints(context, name)
    saved = checkpoints.newest() if context.config.resume else checkpoints.forget()
    for text in checkpoints.damaged:
        context.say(f"{name}: passing over a damaged checkpoint, {text}")
    if saved is not None:
        state.restore(saved.step, saved.parts, saved.facts)
        context.say(f"{name}: going on from step {state.step} of at most {stage.num_steps}")

    def after_step(state: loop.TrainState) -> None:
        stop = interrupt.requested
        if (stop or checkpoints.due(state.step)) and state.step > checkpoints.last_step:
            checkpoints.save(state.step, *state.save())
        if stop:
            raise Stopped

    def note(text: str) -> None:
        log.note(text)
        if interrupt.requested:  # a rollout that is cut short is made again
            after_step(state)

    with StageLog(context.folder, name, stage.num_steps, state.step) as log, Interrupt(context.say) as interrupt:
        stage.note = note
        loop.train(stage, state, optim, log, context.config.log_every, context.autocast, after_step)


def _checkpoints(context: Context, name: str) -> Checkpoints:
    return Checkpoints(context.folder / f"{name}.checkpoints", context.config.checkpoint)


def _sft(context: Context) -> LanguageModel:
    config = context.config.sft
    model = context.load(context.config.model.path)
    groups = loop.parameter_groups("policy", model, config.optim.lr, config.optim.weight_decay)
    state = loop.make_state(groups, config.optim)
    stage = SFT(model, context.corpus.demonstrations, config, state, **context.stage_options)
    _train(context, "sft", stage, state, config.optim)
    return model


def _dpo(context: Context) -> LanguageModel:
    config = context.config.dpo
    model = context.load(context.stage_path("sft"), "sft.model")
    groups = loop.parameter_groups("policy", model, config.optim.lr, config.optim.weight_decay)
    state = loop.make_state(groups, config.optim)
    stage = DPO(model, context.corpus.pairs, config, state, **context.stage_options)
    _train(context, "dpo", stage, state, config.optim)
    return model


def _rto(context: Context, config: RTOConfig | None = None, name: str = "rto") -> LanguageModel:
    config = config or context.config.rto
    policy, reference = (context.load(context.stage_path("sft"), "sft.model") for _ in range(2))
    dpo = context.load(context.stage_path("dpo"), "dpo.model") if config.reward.beta_1 else None
    critic = None
    if config.critic.kind == "shared":
        policy.add_value_head()
    elif config.critic.model:
        critic = load_scalar_model(
            config.critic.model, dtype=context.dtype, device=context.device, field="rto.critic.model"
        )
    else:
        critic = critic_from(reference)
    reward_model = None
    if config.reward_model and config.reward.beta_3:
        reward_model = load_scalar_model(config.reward_model, dtype=context.dtype, device=context.device)
    groups = loop.parameter_groups("policy", policy, config.optim.lr, config.optim.weight_decay)
    if critic is not None:
        groups += loop.parameter_groups("critic", critic, config.critic.lr, config.optim.weight_decay)
    state = loop.make_state(groups, config.optim)
    stage = RTO(
        policy,
        reference,
        dpo,
        critic,
        context.corpus.prompts,
        config,
        state,
        eos_token_ids=context.eos_token_ids,
        max_new_tokens=context.config.max_new_tokens,
        reward_model=reward_model,
        sentence_end_ids=context.corpus.sentence_end_ids,
        **context.stage_options,
    )
    _train(context, name, stage, state, config.optim)
    return policy


def _measure(
    context: Context, policy: LanguageModel, reference: LanguageModel, dpo: LanguageModel | None
) -> Evaluation:
    config = context.config
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
        oracle=context.oracle and context.oracle.answer_return,
        **context.limits,
    )


def _judges(context: Context) -> tuple[LanguageModel, LanguageModel | None]:
    reference = context.load(context.stage_path("sft"), "sft.model")
    has_dpo = "dpo" in context.config.stages or context.config.dpo.model
    return reference, context.load(context.stage_path("dpo"), "dpo.model") if has_dpo else None


def _evaluate(context: Context, say: Callable[[str], None]) -> dict[str, Any]:
    reference, dpo = _judges(context)
    evaluations: dict[str, Evaluation] = {}
    for stage in context.config.stages:
        policy = {"sft": reference, "dpo": dpo}.get(stage) or context.load(context.stage_path(stage))
        evaluations[stage] = _measure(context, policy, reference, dpo)
    results: dict[str, Any] = {
        "policies": {name: e.summary() for name, e in evaluations.items()},
        "win_rate": win_rates(evaluations),
        "judge": "implicit_reward" if context.oracle is None else "oracle_return",
    }
    if dpo is not None and len(context.corpus.held_out) > 1:
        accuracy = preference_accuracy(dpo, reference, context.corpus.held_out, **context.limits)
        results["preference_accuracy"] = interval(accuracy)
    if context.oracle is not None and dpo is not None:
        results["credit_auc"] = _credit(context, evaluations["sft"].answers, reference, dpo)
    write_samples(context.folder / "samples.md", context.tokenizer, evaluations, context.config.eval.samples)
    print_table(results, say)
    return results


def _credit(
    context: Context, answers: list[Completion], reference: LanguageModel, dpo: LanguageModel
) -> dict[str, float]:
    """AUC of DPO's token reward against the oracle's signs, on the reference policy's answers."""
    ours, theirs = (answer_logprobs(m, answers, **context.limits) for m in (dpo, reference))
    signs = [context.oracle.answer_signs(a.prompt, a.response) for a in answers]
    return interval(credit_auc([o - t for o, t in zip(ours, theirs, strict=True)], signs))


def _sweep(context: Context, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Short RTO runs over b1/b2 and c: what each gains, and where it over-optimises."""
    config = context.config
    reference, dpo = _judges(context)
    rows = []
    for ratio in config.sweep.ratios:
        for clip in config.sweep.clips:
            reward = replace(config.rto.reward, beta_2=config.rto.reward.beta_1 / ratio, clip=clip)
            name = f"sweep-{ratio:g}-{clip:g}"
            policy = _rto(context, replace(config.rto, reward=reward, iterations=config.sweep.iterations), name)
            _checkpoints(context, name).forget()
            with context.precision():
                summary = _measure(context, policy, reference, dpo).summary()
            setting = {"ratio": ratio, "beta_1": reward.beta_1, "beta_2": reward.beta_2}
            # JSON has no infinity
            rows.append({**setting, "clip": clip if math.isfinite(clip) else None, **summary})
    print_sweep(rows, say)
    return rows
