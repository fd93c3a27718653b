"""Before the first step of a run: every check whose failure would cost hours later, as a table of what was measured."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rto_fast.data.fingerprint import check_same_tokenizer
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.text import in_words
from rto_fast.judges.choose import check_sources
from rto_fast.kernels.common import dispatch, native
from rto_fast.model import attention
from rto_fast.model.exact import TOLERANCE, check_packing, check_ratio
from rto_fast.model.language import LanguageModel
from rto_fast.model.liger import unserved
from rto_fast.packing import pack
from rto_fast.pipeline import threads
from rto_fast.pipeline.ladder import Check, check_room, climb, free_for_stages
from rto_fast.pipeline.networks import adapter_size
from rto_fast.runs.export import save_stage
from rto_fast.runs.open import Context
from rto_fast.runs.read_back import check_export
from rto_fast.training import mesh

SMALL = 256 * 2**20
"""Bytes of weights up to which a trial export is quick; larger models are checked when a stage is finished."""


PROBE = range(1, 9)
"""Token ids (modulo the vocabulary) of the one sequence that a trial export must agree on."""


def preflight(
    context: Context, model: LanguageModel, began: dict[str, Any] | None = None
) -> tuple[Context, list[Check]]:
    """Run all checks. Raises ValueError, naming the field, what was measured and the fix, at the first that fails.

    The run comes back with the settings that fit its device (memory = auto). began: inputs.json of one that goes on.
    """
    checks = list(_sound(context, model))
    free = free_for_stages(context.device, model)
    context = climb(context, free, began)
    return context, [*checks, *check_room(context, free)]


def _sound(context: Context, model: LanguageModel) -> Iterator[Check]:
    config, corpus = context.config, context.corpus
    trusted, same = config.model.trust_remote_code, ["model.path"]
    given = {"sft.model": config.sft.model, "dpo.model": config.dpo.model, "rto.critic.model": config.rto.critic.model}
    for name, path in given.items():
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
    if config.adapter.rank is not None:
        numbers, layers = adapter_size(context, model)
        share = numbers / model.hf.num_parameters()
        yield Check("adapters", f"{numbers:,} numbers each, {share:.2%} of the base", f"on {layers} layers")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size <= SMALL and not context.quantized:
        # transformers saves in one process of several
        mesh.first_does(
            lambda: check_trial_export(model, context.tokenizer, lambda path: context.load(path, trained=True))
        )
        yield Check("export reloads", "the same logits", "bit for bit")
    else:
        yield Check("export reloads", f"not tried, {in_words(size)}", "checked when a stage is finished")
    if examples := corpus.examples(64):
        count = check_eos([response for _, response in examples], context.eos_token_ids)
        yield Check("answers end in EOS", f"{count} of {count}, with weight", "all")
        characters = check_round_trip(context.tokenizer, examples[0][1])
        yield Check("tokenizer reads back", f"{characters} characters", "the same text")


def warn(context: Context) -> None:
    """Say what of the data should be looked at, in lines that stand out."""
    for line in context.corpus.warnings:
        context.say(f"WARNING: {line}")


def announce(context: Context, model: LanguageModel, checks: list[Check]) -> None:
    """Say what runs on what, what was checked, and what became of the data."""
    say, device, dtype = context.say, context.device, context.autocast or context.dtype
    millions = model.hf.num_parameters() / 1e6
    say(
        f"rto_fast {context.config.recipe}: {type(model.hf).__name__} {millions:.2f} M parameters, {device}, "
        f"{str(dtype).removeprefix('torch.')}, attention: {attention.describe(device, dtype)}" + _liger(context, model)
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


def _liger(context: Context, model: LanguageModel) -> str:
    """Whether liger-kernel's layers are in it; on a CPU, where they cannot be, nothing."""
    if context.config.model.liger is False or context.device.type != "cuda":
        return ""
    return f", {unserved(model.hf.config.model_type, context.device) or 'liger-kernel'}"


def check_eos(responses: Sequence[list[int]], eos_token_ids: Sequence[int]) -> int:
    """How many answers were looked at; all must end in an EOS, and that row must be one that is trained."""
    for number, response in enumerate(responses, 1):
        if response[-1] not in eos_token_ids:
            raise ValueError(
                f"data: answer {number} ends in token {response[-1]}, not in EOS {list(eos_token_ids)}; a policy "
                "trained on it would never stop: give the model a tokenizer with an EOS, or another --data.template"
            )
    batch = pack([response[:1] for response in responses], responses)
    last = batch.response_rows[batch.response_cu_seqlens[1:].long() - 1]
    if not (batch.weights[last] > 0).all():
        raise ValueError("data: EOS rows have no weight; this is a fault of rto_fast, please report it")
    return len(responses)


def check_round_trip(tokenizer: PreTrainedTokenizerBase, response: list[int]) -> int:
    """How many characters an answer's text has; written and read again it must be the same, whitespace aside."""

    def text(ids: list[int]) -> str:
        return "".join(str(tokenizer.decode(ids, skip_special_tokens=True)).split())

    once = text(response)
    again = text(tokenizer(once_spaced := tokenizer.decode(response, skip_special_tokens=True))["input_ids"])
    if once != again:
        at = len(os.path.commonprefix((once, again)))
        raise ValueError(
            f"model.path: the tokenizer does not read back what it writes: {once[at : at + 20]!r} became "
            f"{again[at : at + 20]!r}; its files do not belong together"
        )
    return len(once_spaced)


@torch.no_grad()
def check_trial_export(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LanguageModel]
) -> None:
    """Write the model to a temporary folder, load it again and compare one sequence's logits, bit by bit."""
    tokens = [i % model.vocab_size for i in PROBE]
    packed = pack([tokens[:1]], [tokens[1:]]).to(model.hf.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        save_stage(folder, model.hf, tokenizer, {"stage": "trial"})
        check_export(folder, model.hf, tokenizer)
        saved, own = (m(packed, lambda hidden, head: hidden @ head.weight.T) for m in (load(str(folder)), model))
    if not torch.equal(saved, own):
        gap = (saved.float() - own.float()).abs().max().item()
        raise ValueError(f"export: {folder} reloads to other logits (largest difference {gap:.3g}); check its disk")
