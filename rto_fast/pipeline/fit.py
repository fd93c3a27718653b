"""Which settings make a run fit a device: what leaves results alone first, and no further than needed."""

from collections.abc import Callable
from typing import Any

from rto_fast.config import Config
from rto_fast.config.neutral import with_values
from rto_fast.model.adapter_files import is_adapter
from rto_fast.pipeline.estimate import Models, needs
from rto_fast.pipeline.footprint import Arithmetic

RANK = 16


def largest(config: Config, models: Models, how: Arithmetic) -> int:
    """Bytes at the run's peak."""
    return max((need.peak for need in needs(config, models, how).values()), default=0)


def waiting(config: Config, models: Models, how: Arithmetic) -> int:
    """Bytes of host memory at the run's peak, of what waits there."""
    return max((need.host for need in needs(config, models, how).values()), default=0)


def fitting(
    config: Config, models: Models, how: Arithmetic, memory: int, host: int | None = None
) -> dict[str, Any] | None:
    """The settings that have to change, by their names, for a peak of at most `memory`; None where nothing helps.

    host  the host's memory, which then bounds what waits there, and of the settings only those change that leave
          results alone but for their last bits
    """

    def fits(settings: dict[str, Any]) -> bool:
        return largest(with_values(config, settings), models, how) <= memory

    def found_room(settings: dict[str, Any]) -> bool:
        return host is None or waiting(with_values(config, settings), models, how) <= host

    for trained in _trained(config) if host is None else [{}]:
        settings = _mildest(_rungs(config, how.cpu), trained, fits, found_room)
        if settings is not None:
            return {name: value for name, value in settings.items() if value != _of(config, name)}
    return None


def _mildest(
    rungs: dict[str, list[Any]],
    settings: dict[str, Any],
    fits: Callable[[dict[str, Any]], bool],
    ends: Callable[[dict[str, Any]], bool],
) -> dict[str, Any] | None:
    """The first settings that fit, the first rung climbed last; a rung whose ends would not fit is passed over."""
    if not rungs:
        return settings if ends(settings) else None
    (name, values), *others = rungs.items()
    rest = dict(others)
    for value in values:
        tried = {name: value} | settings
        if fits(tried | {other: more[-1] for other, more in rest.items()}):
            if (found := _mildest(rest, tried, fits, ends)) is not None:
                return found
    return None


def _rungs(config: Config, cpu: bool) -> dict[str, list[Any]]:
    """Values of settings that leave results alone, each milder than the next; the setting that costs most is first."""
    rows = [config.microbatch_rows]
    while rows[-1] > config.data.max_length:
        rows.append(max(rows[-1] // 2, config.data.max_length))
    batches = [config.rto.sampling.batch_size]
    while config.members and batches[-1] > 1:
        batches.append(batches[-1] // 2)
    return {
        "rto.sampling.batch_size": batches,
        "offload.optimizer": _switched(config.offload.optimizer, can=not cpu and config.adam_bits == 32),
        "offload.frozen": _switched(config.offload.frozen, can=not cpu and bool(config.members)),
        "model.gradient_checkpointing": _switched(config.model.gradient_checkpointing),
        "microbatch_rows": rows,
    }


def _switched(on: bool, can: bool = True) -> list[bool]:
    """A switch as it is, and then on where it can be."""
    return [on] if on or not can else [False, True]


def _trained(config: Config) -> list[dict[str, Any]]:
    """As the settings say, a value head in the critic's place, adapters, both; and on a base of 4 bits a number."""
    critic = config.rto.critic
    separate = bool(config.members) and critic.kind == "separate"
    shared: dict[str, Any] = {"rto.critic.kind": "shared", "rto.critic.model": None} if separate else {}
    whole = separate and critic.model not in (None, "rm") and not is_adapter(critic.model or "")
    adapters: dict[str, Any] = {"adapter.rank": RANK} | ({"rto.critic.model": None} if whole else {})
    if config.adapter.rank is not None:
        adapters = {}
    packed = {} if config.adapter.quantize else {**adapters, "adapter.quantize": "nf4"}
    found: list[dict[str, Any]] = [{}, shared, adapters, {**adapters, **shared}, packed, {**packed, **shared}]
    return [x for i, x in enumerate(found) if x not in found[:i]]


def _of(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
