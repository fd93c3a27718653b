"""What a finished stage depends on: the settings that make it another stage, and the stages that it builds on."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from rto_fast.config import Config, member
from rto_fast.config.recipe import plain

STAGES: tuple[str, ...] = typing.get_args(typing.get_args(Config.__dataclass_fields__["stages"].type)[0])
"""All there are, in an order in which they can run."""
EVERY = ("seed", "model", "adapter", "adam_bits", "data", "guards", "export.dtype")
"""Settings, and sections of them, that every stage depends on; each depends on its own section too."""
LEFT_OUT = {
    *("model.gradient_checkpointing", "guards.stall_minutes", "data.allow_dropped"),
    *("rto.score.server", "rto.score.timeout", "rto.score.retries", "rto.score.batch"),
    # which model that is counts, wherever it lies: `builds_on`
    *("sft.model", "dpo.model", "rm.model"),
}
"""Of these, what changes no number that a stage computes."""
NOT_READ = {
    "sft": ("data.prompts",),
    "dpo": ("data.prompts", "data.demonstrations"),
    "rm": ("data.prompts", "data.demonstrations"),
    "rto": ("data.demonstrations",),
}
"""Data that a stage does not learn from; members of the RTO family are as `rto`."""


def section(stage: str) -> str:
    """Whose settings a stage takes."""
    return stage if stage in ("sft", "dpo", "rm") else "rto"


def builds_on(stage: str, config: Config) -> list[str]:
    """The stages whose models a stage starts from or is paid by."""
    if section(stage) != "rto":
        return [] if stage == "sft" else ["sft"]
    rl = member(config.rto, stage)
    paid = rl.reward.beta_3 and not (rl.score.rule or rl.score.server)
    return ["sft", *["dpo"] * bool(rl.reward.beta_1), *["rm"] * bool(paid or rl.critic.model == "rm")]


def differences(stage: str, old: Config, new: Config) -> list[str]:
    """The settings by which the stage itself is another one under `new`, as "dpo.beta was 0.1, now 0.2"."""
    before, now = (dict(_settings(stage, config)) for config in (old, new))
    return [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in {**before, **now} if before.get(k) != now.get(k)]


def usable(finished: list[str], old: Config, new: Config) -> list[str]:
    """Those of a run's finished stages that are the same under `new`, as far as settings tell."""
    same: list[str] = []
    trained = (*old.stages, *new.stages)
    for stage in finished:
        given = ((s, old.given(s), new.given(s)) for s in builds_on(stage, new))
        if all(s in same or was == now and (now or s not in trained) for s, was, now in given):
            same += [stage] * (not differences(stage, old, new))
    return same


def _settings(stage: str, config: Config) -> Iterator[tuple[str, Any]]:
    """What counts of a configuration, flat."""
    own = section(stage)
    if own == "rto":
        config = dataclasses.replace(config, rto=member(config.rto, stage))
    best = ("checkpoint",) if config.checkpoint.best else ()
    for name, value in flat(plain(config)).items():
        top = name.partition(".")[0]
        counts = top in EVERY or name in EVERY or top in (own, *best)
        if counts and name not in LEFT_OUT and name not in NOT_READ[own]:
            yield name, value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
