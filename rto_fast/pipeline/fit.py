"""Which settings make a run fit a card: what leaves results alone first, and no further than needed."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from rto_fast.config import Config
from rto_fast.config.neutral import with_values
from rto_fast.model.adapter_files import is_adapter
from rto_fast.pipeline.estimate import Arithmetic, Models, needs

RANK = 16


def largest(config: Config, models: Models, how: Arithmetic) -> int:
    """Bytes at the run's peak."""
    return max((need.peak for need in needs(config, models, how).values()), default=0)


def fitting(config: Config, models: Models, how: Arithmetic, memory: int) -> dict[str, Any] | None:
    """The settings that have to change, by their names, for a peak of at most `memory`; None where nothing helps."""
    for settings in _rungs(config):
        if largest(with_values(config, settings), models, how) <= memory:
            return settings
    return None


def _rungs(config: Config) -> Iterator[dict[str, Any]]:
    """Settings to be changed, the mildest first: the last bits of results, time, and only then what is trained."""
    rows = [config.microbatch_rows]
    while rows[-1] > config.data.max_length:
        rows.append(max(rows[-1] // 2, config.data.max_length))
    batches = [config.rto.sampling.batch_size]
    while config.members and batches[-1] > 1:
        batches.append(batches[-1] // 2)
    checkpointing = [True] if config.model.gradient_checkpointing else [False, True]
    for trained, batch, saving, row in product(_trained(config), batches, checkpointing, rows):
        settings = {
            "microbatch_rows": row,
            "model.gradient_checkpointing": saving,
            "rto.sampling.batch_size": batch,
            **trained,
        }
        yield {name: value for name, value in settings.items() if value != _of(config, name)}


def _trained(config: Config) -> list[dict[str, Any]]:
    """As the settings say, a value head in the critic's place, adapters, and both."""
    critic = config.rto.critic
    separate = bool(config.members) and critic.kind == "separate"
    shared: dict[str, Any] = {"rto.critic.kind": "shared", "rto.critic.model": None} if separate else {}
    whole = separate and critic.model not in (None, "rm") and not is_adapter(critic.model or "")
    adapters: dict[str, Any] = {"adapter.rank": RANK} | ({"rto.critic.model": None} if whole else {})
    if config.adapter.rank is not None:
        adapters = {}
    found: list[dict[str, Any]] = [{}, shared, adapters, {**adapters, **shared}]
    return [x for i, x in enumerate(found) if x not in found[:i]]


def _of(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
