"""Before the first step of a run: every check whose failure would cost hours later, as a table of what was measured."""

from collections.abc import Iterator
from typing import NamedTuple

from rto_fast.data.fingerprint import check_same_tokenizer
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.text import in_words
from rto_fast.judges.choose import check_sources
from rto_fast.kernels.common import dispatch, native
from rto_fast.model import attention
from rto_fast.model.exact import TOLERANCE, check_packing, check_ratio
from rto_fast.model.language import LanguageModel
from rto_fast.pipeline import threads
from rto_fast.pipeline.checks import check_eos, check_round_trip, check_trial_export
from rto_fast.pipeline.memory import estimate
from rto_fast.runs.open import Context
from rto_fast.training.resources import available_memory, free_disk

SMALL = 256 * 2**20
"""Bytes of weights up to which a trial export is quick; larger models are checked when a stage is finished."""


class Check(NamedTuple):
    name: str
    measured: str
    wanted: str


def preflight(context: Context, model: LanguageModel) -> list[Check]:
    """Run all checks. Raises ValueError, naming the field, what was measured and the fix, at the first that fails."""
    return [*_models(context, model), *_data(context), *_room(context, model)]


def _models(context: Context, model: LanguageModel) -> Iterator[Check]:
    config, corpus = context.config, context.corpus
    trusted, same = config.model.trust_remote_code, ["model.path"]
    for name, path in (
        ("sft.model", config.sft.model),
        ("dpo.model", config.dpo.model),
        ("rto.critic.model", config.rto.critic.model),
    ):
        if path and path != "rm":
            check_same_tokenizer(context.tokenizer, load_tokenizer(path, name, trusted), "model.path", name)
            same.append(name)
    yield Check("tokenizer", f"{len(context.tokenizer)} ids in {', '.join(same)}", "the same everywhere")
    if source := check_sources(context):
        yield Check("sentence score", *source)
    prompts = [(prompt[:1], prompt[1:]) for prompt in corpus.prompts[:2] if len(prompt) > 1]
    examples = corpus.examples(2) or prompts
    dtype = context.autocast or context.dtype
    limit = f"at most {TOLERANCE[dtype]} nat"
    with context.precision():
        gap = check_packing(model, examples, dtype, config.workspace_mb)
        yield Check("packed = alone", f"{gap:.1e} nat on {len(examples)} rows", limit)
        gap = check_ratio(model, examples, dtype, config.workspace_mb)
        yield Check("first ratio = 1, first KL = 0", f"{gap:.1e} nat", limit)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size <= SMALL:
        check_trial_export(model, context.tokenizer, context.load)
        yield Check("export reloads", "the same logits", "bit for bit")
    else:
        yield Check("export reloads", f"not tried, {in_words(size)}", "checked when a stage is finished")


def _data(context: Context) -> Iterator[Check]:
    examples = context.corpus.examples(64)
    if examples:
        count = check_eos([response for _, response in examples], context.eos_token_ids)
        yield Check("answers end in EOS", f"{count} of {count}, with weight", "all")
        characters = check_round_trip(context.tokenizer, examples[0][1])
        yield Check("tokenizer reads back", f"{characters} characters", "the same text")


def _room(context: Context, model: LanguageModel) -> Iterator[Check]:
    needs = estimate(context.config, model, context.autocast)
    memory, disk = available_memory(context.device), free_disk(context.folder)
    parts = f"models {in_words(needs.models)}, activations {in_words(needs.activations)}, cache {in_words(needs.cache)}"
    if needs.models > memory:
        raise ValueError(
            f"model: weights, gradients and moments need {in_words(needs.models)}, but {context.device} has "
            f"{in_words(memory)} free; use a smaller model, --model.dtype bfloat16, or --rto.critic.kind shared"
        )
    if needs.disk > disk:
        raise ValueError(
            f"output: {context.folder} needs about {in_words(needs.disk)} for models and checkpoints, but its disk has "
            f"{in_words(disk)} free; name another with --output, or lower --checkpoint.keep"
        )
    # an estimate of activations is too rough to refuse a run for
    tight = "" if needs.memory <= memory else "; TIGHT: lower --microbatch-rows"
    yield Check("memory", f"about {in_words(needs.memory)} ({parts})", f"{in_words(memory)} free{tight}")
    yield Check("disk", f"about {in_words(needs.disk)}", f"{in_words(disk)} free")


def warn(context: Context) -> None:
    """Say what of the data should be looked at, in lines that stand out."""
    for line in context.corpus.warnings:
        context.say(f"WARNING: {line}")


def announce(context: Context, model: LanguageModel, checks: list[Check]) -> None:
    """Say what runs on what, what was checked, and what became of the data."""
    say, device, dtype = context.say, context.device, context.autocast or context.dtype
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    say(
        f"rto_fast {context.config.recipe}: {type(model.hf).__name__} {millions:.2f} M parameters, {device}, "
        f"{str(dtype).removeprefix('torch.')}, attention: {attention.describe(device, dtype)}"
    )
    say("kernels: " + ", ".join(f"{op} = {backend}" for op, backend in dispatch.table(device).items()))
    if device.type == "cpu":
        if reason := native.missing():
            say(f"kernels: {reason}")
        if line := threads.advice(native.threads()):
            say(line)
    for line in context.corpus.notes:
        say(line)
    warn(context)
    width = max(len(check.name) for check in checks)
    for name, measured, wanted in checks:
        say(f"  {name:{width}}  {measured}  ({wanted})")
