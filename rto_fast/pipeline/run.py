"""What a run does, in order: data, its stages, evaluation, sweep. Stages that are finished are not run again."""

import contextlib
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rto_fast.config import Config, RTOConfig
from rto_fast.files.digests import MANIFEST, check_stage, write_recorded
from rto_fast.model.adapters import Base
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import load_language_model, stored_dtype
from rto_fast.model.scalar import ScalarModel
from rto_fast.pipeline.build import Built, build, build_rl
from rto_fast.pipeline.measure import evaluate_run, sweep
from rto_fast.pipeline.memory import explained
from rto_fast.pipeline.preflight import announce, preflight, warn
from rto_fast.pipeline.prepare import keep_task, prepare
from rto_fast.pipeline.ranks import check_ranks
from rto_fast.pipeline.takeover import open_other, take_over
from rto_fast.runs import inputs
from rto_fast.runs.export import as_classifier, is_finished, save_adapter_stage, save_stage
from rto_fast.runs.folder import LOCK, alone, check, claim
from rto_fast.runs.open import Context
from rto_fast.runs.read_back import check_export
from rto_fast.stages.rm import RewardModel
from rto_fast.training import loop, mesh
from rto_fast.training.checkpoint import Checkpoints
from rto_fast.training.guards import BadStep, dump
from rto_fast.training.interrupt import Interrupt, Stopped, signals_stop
from rto_fast.training.metrics import NoLog, StageLog
from rto_fast.training.stall import StallGuard


def run(
    config: Config, say: Callable[[str], None] = print, preflight_only: bool = False, take_from: str | None = None
) -> dict[str, Any]:
    """Run a configuration whole and return what results.json holds.

    preflight_only  check everything, train nothing
    take_from       the folder of a run whose finished stages are taken over where they are the same
    """
    started = time.perf_counter()
    disable_progress_bar()  # one bar per file that transformers reads or writes hides ours
    torch.manual_seed(config.seed)
    folder = check(config)
    say = say if mesh.is_first() else _nothing
    other = open_other(take_from, config) if take_from else None
    # where somebody may be running, that is better known before models are loaded
    early = not preflight_only and (folder / LOCK).exists() and mesh.asked() == 1
    with contextlib.ExitStack() as held:
        held.callback(mesh.end)
        held.push(mesh.confess)
        if early:
            held.enter_context(alone(folder))
        with tempfile.TemporaryDirectory() as scratch:
            context, model = prepare(config, say, Path(scratch))
            check_ranks(context)
            context, checks = preflight(context, model, inputs.read(context.folder))
            announce(context, model, checks)
            del model  # stages load their own, and this one would lie beside them to the end
            if preflight_only:
                if other:
                    take_over(context, other, *_inputs(context), only_say=True)
                return {}
            if not early:
                mesh.first_does(lambda: held.enter_context(alone(folder)))
            mesh.first_does(lambda: claim(config))
            context = keep_task(context, config)
        held.enter_context(signals_stop())
        # once more, now that nobody else can begin a run in this folder
        began, (now, learns) = inputs.read(context.folder), _inputs(context)
        inputs.check(began, now)
        mesh.first_does(lambda: inputs.remember(context, began, now, learns, config.microbatch_rows))
        if other:
            mesh.first_does(lambda: take_over(context, other, now, learns, only_say=False))
        results = _work(context)
        results["seconds"] = round(time.perf_counter() - started, 1)
        text = json.dumps(results, indent=2, allow_nan=False) + "\n"
        mesh.first_does(lambda: write_recorded(context.folder / "results.json", text))
    warn(context)  # what was said at the start has scrolled away
    say(
        f"Finished in {results['seconds']:.0f} s. Results: {context.folder / 'results.json'}; models: "
        + ", ".join(context.stage_path(s) for s in config.stages)
    )
    return results


def _nothing(text: str) -> None:
    """What the other ranks say to the user."""


def _inputs(context: Context) -> tuple[inputs.Digests, dict[str, str]]:
    """The digests of what the run reads, and of what each stage learns from."""
    corpus, config = context.corpus, context.config
    read = inputs.of_models(config, context.say) | corpus.digests
    return read, inputs.learns_from(corpus, context.eos_token_ids, config.max_new_tokens)


def _work(context: Context) -> dict[str, Any]:
    """The stages and what is measured after them, as results.json has it."""
    config, say = context.config, context.say
    for stage in config.stages:
        with explained(stage, config):
            _run_stage(context, stage)
    results: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed}
    measured = len(context.corpus.evaluation[: config.eval.prompts]) > 1
    if measured:
        with explained("evaluation", config):
            results |= mesh.first_tells(lambda: evaluate_run(context, say))
    elif config.eval.prompts:
        say("No evaluation: it needs two held-out prompts or more; raise --data.held-out or give --data.evaluation")
    if measured and config.sweep.ratios:
        results["sweep"] = sweep(context, lambda settings, name: _trial(context, settings, name), say)
    return results


def _run_stage(context: Context, stage: str) -> None:
    folder = context.folder / stage
    if given := context.config.given(stage):
        context.say(f"{stage}: using {given}")
        return
    if is_finished(folder):
        check_stage(folder, stage)
        unsure = "" if (folder / MANIFEST).exists() else ", without digests: an older version wrote it"
        context.say(f"{stage}: finished already, using {folder}{unsure}")
        mesh.first_does(_checkpoints(context, stage).forget)  # a run may die between the two
        return
    started = time.perf_counter()
    gc.collect()  # models hold themselves in circles: those of what was done before would stay beside this stage's
    with Interrupt(context.say) as interrupt:
        built = build(context, stage)
        checkpoints = _train(context, stage, built, interrupt)
        facts = {"stage": stage, "seconds": round(time.perf_counter() - started, 1)}
        mesh.first_does(lambda: _leave(context, stage, built, checkpoints, facts))


def _leave(context: Context, stage: str, built: Built, checkpoints: Checkpoints, facts: dict[str, Any]) -> None:
    _export_best(context, stage, built, checkpoints, facts)
    _export(context, stage, built, stage, facts)
    checkpoints.forget()


def _export_best(context: Context, stage: str, built: Built, checkpoints: Checkpoints, facts: dict[str, Any]) -> None:
    """The best checkpoint beside the stage's end, which is a checkpoint as well: a kill in between costs neither."""
    if checkpoints.best is None:
        return
    best = checkpoints.best.found
    if best is None:
        context.say(
            f"{stage}: no checkpoint has a value of {checkpoints.best.name}, so none is the best; if this stage "
            "reports it, save more often with --checkpoint.every"
        )
        return
    context.say(f"{stage}: the best checkpoint is that of step {best.step}, {best.metric} {best.value:.4g}")
    end = built.state.step
    built.state.restore(*checkpoints.read(best.step))
    _export(context, stage, built, f"{stage}_best", facts | asdict(best))
    built.state.restore(*checkpoints.read(end))  # not the newest that is whole: that may be an earlier one


def _export(context: Context, stage: str, built: Built, name: str, facts: dict[str, Any]) -> None:
    """The model as it is now, as a folder that others load; read back and compared."""
    folder, dtype, model, tokenizer = context.folder / name, context.export_dtype(stage), built.model, context.tokenizer
    if isinstance(built.stage, RewardModel):
        with context.precision():
            built.stage.calibrate()
    if model.base is not None:
        _export_adapter(context, stage, model, name, facts)
        return
    if isinstance(model, ScalarModel):
        facts |= {"mean": model.mean, "std": model.std}
    hf = as_classifier(model, tokenizer) if isinstance(model, ScalarModel) else model.hf
    save_stage(folder, hf, tokenizer, facts, dtype)
    check_export(folder, hf, tokenizer, dtype)


def _export_adapter(
    context: Context, stage: str, model: LanguageModel | ScalarModel, name: str, facts: dict[str, Any]
) -> None:
    """The adapter that a stage has trained; of sft the whole model, which the others' adapters lie on."""
    folder = context.folder / name
    base, adapter = model.base, model.adapter
    assert base is not None and adapter is not None  # else nothing was trained
    start = context.config.model.path if stage == "sft" else context.stage_path("sft")
    if isinstance(model, ScalarModel):
        facts |= {"mean": model.mean, "std": model.std}
    elif stage == "sft" or context.config.export.merge:
        whole = folder if stage == "sft" else context.folder / f"{name}_merged"
        hf, weights, dtype = *_merged(context, base, adapter, start), context.export_dtype(stage)
        save_stage(whole, hf, context.tokenizer, facts, dtype, weights)
        check_export(whole, hf, context.tokenizer, dtype, weights)
    if stage != "sft":
        save_adapter_stage(folder, model, os.path.abspath(start), context.tokenizer, facts)


def _merged(context: Context, base: Base, adapter: str, start: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model of the adapter's whole weights' shape, and those. Where the base is quantised or rounded they are those
    of before, in the machine's memory: what an adapter learns is less than the steps of 4 bits, or of bfloat16."""
    as_stored = context.autocast in (None, stored_dtype(start, context.trusted))
    if as_stored and not context.quantized:
        return base.hf, base.merged_weights(adapter)
    whole = load_language_model(start, field="model.path", trust_remote_code=context.trusted).hf
    return whole, base.merged_weights(adapter, whole.state_dict())


def _trial(context: Context, settings: RTOConfig, name: str) -> LanguageModel:
    """A policy that is looked at and not kept."""
    with Interrupt(context.say) as interrupt:
        built = build_rl(context, settings)
        _train(context, name, built, interrupt).forget()
    assert isinstance(built.model, LanguageModel)
    return built.model


def _train(context: Context, name: str, built: Built, interrupt: Interrupt) -> Checkpoints:
    """Train a stage, from its last checkpoint where there is one. With a best checkpoint the end is one too."""
    stage, state = built.stage, built.state
    checkpoints = _checkpoints(context, name)
    saved = checkpoints.newest() if context.config.resume else None
    if not context.config.resume:
        checkpoints.forget()
    for text in checkpoints.damaged:
        context.say(f"{name}: passing over a damaged checkpoint, {text}")
    if saved is not None:
        state.restore(*saved)
        context.say(f"{name}: going on from step {state.step} of at most {stage.num_steps}")

    def save() -> None:
        if state.step > checkpoints.last_step:
            checkpoints.save(state.step, *state.save())

    def after_step(state: loop.TrainState) -> None:
        stall.alive(f"after step {state.step}")
        stop = mesh.any_of(interrupt.requested)
        if stop or checkpoints.due(state.step):
            save()
        if stop:
            checkpoints.wait()
            raise Stopped

    def note(text: str) -> None:
        stall.alive(text)
        log.note(text)
        if interrupt.requested and mesh.ranks() == 1:  # a rollout that is cut short is made again
            after_step(state)

    def report(step: int, metrics: dict[str, float]) -> None:
        log(step, metrics)
        checkpoints.report(metrics)

    config = context.config
    with (
        checkpoints,
        StageLog(context.folder, name, stage.num_steps, state.step) if mesh.is_first() else NoLog() as log,
        StallGuard(config.guards.stall_minutes, name) as stall,
    ):
        stage.note = note
        if mesh.any_of(interrupt.requested):  # while models were loaded
            raise Stopped
        try:
            loop.train(stage, state, report, config.log_every, context.autocast, after_step, config.guards)
            if checkpoints.best is not None and checkpoints.best.found is not None:
                save()
        except BadStep as error:
            where = dump(context.folder / f"{name}.bad-step", error.batches) if mesh.is_first() else "rank 0 has them"
            raise FloatingPointError(f"{name}: {error}; {where}") from error
        except (OSError, ValueError):
            if state.between_steps:  # a reward server that is down must not cost the steps since the last checkpoint
                save()
            raise
    return checkpoints


def _checkpoints(context: Context, name: str) -> Checkpoints:
    return Checkpoints(context.folder / f"{name}.checkpoints", context.config.checkpoint)
