"""Whether a run fits its device and its disk, and with memory = auto the mildest settings with which it does."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from rto_fast.config.neutral import with_values
from rto_fast.files.text import in_words
from rto_fast.model.language import LanguageModel
from rto_fast.pipeline.estimate import disk, needs
from rto_fast.pipeline.facts import models_of
from rto_fast.pipeline.fit import fitting, largest
from rto_fast.pipeline.footprint import Arithmetic
from rto_fast.pipeline.told import flag
from rto_fast.runs.open import Context
from rto_fast.training import mesh
from rto_fast.training.resources import available_memory, free_disk

HOST_SHARE = 0.8
"""Of the host's free memory, what may be filled: data, checkpoints being written and pinned copies need the rest."""


class Check(NamedTuple):
    name: str
    measured: str
    wanted: str


def climb(context: Context, memory: int, began: dict[str, Any] | None) -> Context:
    """The run with the mildest settings that fit `memory` bytes of its device, and a line that says which.

    As it is where it fits, where nothing helps, and with memory = as-set. The settings are neutral to results but for
    their last bits with microbatch_rows: a run that goes on (began: its inputs.json) keeps those of its start.
    """
    config = context.config
    if config.memory != "auto":
        return context
    models, how = models_of(config), arithmetic(context)
    host = int(HOST_SHARE * available_memory(torch.device("cpu")))
    kept = _kept_rows(config.microbatch_rows, began["made_with"] if began else {})
    found = fitting(with_values(config, kept), models, how, memory, host)
    if not (settings := None if found is None else kept | found):
        return context
    chosen = with_values(config, settings)
    flags = " ".join(flag(*item) for item in settings.items())
    if (peak := largest(config, models, how)) <= memory:
        context.say(f"memory: going on with {flags}, as the run began")
    else:
        context.say(
            f"memory: {in_words(peak)} would be needed where {in_words(memory)} are free, so {flags}: about "
            f"{in_words(largest(chosen, models, how))}"
        )
    return replace(context, config=chosen)


def _kept_rows(asked: int, before: dict[str, Any]) -> dict[str, Any]:
    """Micro-batches that were chosen when the run began, unless the user has asked for others since."""
    rows = before.get("microbatch_rows")
    chosen = before.get("asked_rows") == asked and type(rows) is int and 0 < rows < asked
    return {"microbatch_rows": rows} if chosen else {}


def arithmetic(context: Context) -> Arithmetic:
    """What numbers take in this run: trained weights are float32 whatever they are multiplied in."""
    return Arithmetic(half=context.autocast is not None, cpu=context.device.type == "cpu")


def free_for_stages(device: torch.device, model: LanguageModel) -> int:
    """Bytes of the device that stages will find free, when the model that preflight looks at is gone; of several ranks
    those of the one that has least, where they share a machine's memory their part of it."""
    free = available_memory(device) + sum(p.numel() * p.element_size() for p in model.parameters())
    return min(mesh.everyones(free // (mesh.ranks() if device.type == "cpu" else 1)))


def check_room(context: Context, memory: int) -> Iterator[Check]:
    """Whether the run fits `memory` bytes of its device, and its disk. ValueError where it cannot."""
    config, models = context.config, models_of(context.config)
    how, free = arithmetic(context), free_disk(context.folder)
    if found := needs(config, models, how):
        stage, need = max(found.items(), key=lambda item: item[1].peak)
        held = need.weights + need.gradients + need.states
        if held > memory:
            raise ValueError(
                f"model: weights, gradients and moments of {stage} need {in_words(held)}, but {context.device} has "
                f"{in_words(memory)} free; use a smaller model, --adapter.rank 16, or --rto.critic.kind shared "
                "(python -m rto_fast.plan says what fits which GPU)"
            )
        parts = f"models {in_words(held)}, activations {in_words(need.activations)}, cache {in_words(need.cache)}"
        # the data may be shorter than the settings allow: no reason to refuse a run
        tight = "" if need.peak <= memory else "; TIGHT: lower --microbatch-rows, or --data.max-length"
        yield Check("memory", f"{stage} about {in_words(need.peak)} ({parts})", f"{in_words(memory)} free{tight}")
    wanted = sum(disk(config, models, how))
    if wanted > free:
        raise ValueError(
            f"output: {context.folder} needs about {in_words(wanted)} for models and checkpoints, but its disk has "
            f"{in_words(free)} free; name another with --output, or lower --checkpoint.keep"
        )
    yield Check("disk", f"about {in_words(wanted)}", f"{in_words(free)} free")
