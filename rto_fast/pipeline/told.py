"""A plan as lines to read."""

from typing import Any

from rto_fast.config import Config
from rto_fast.config.neutral import with_values
from rto_fast.files.text import in_columns
from rto_fast.pipeline.cards import CARDS, RESERVED, step_flops, tokens_per_second
from rto_fast.pipeline.estimate import disk
from rto_fast.pipeline.facts import arithmetic_on_cuda, models_of
from rto_fast.pipeline.fit import largest, waiting

PARTS = ("weights", "gradients", "states", "activations", "cache", "workspace", "peak")
SPEEDS = ("rollout at most", "a step at least")


def told(config: Config, found: dict[str, Any]) -> list[str]:
    """The stages' bytes, which cards are enough, the bounds of their speed, and the disk.

    found  as rto_fast.plan.planned has it
    """
    how, models, stages = arithmetic_on_cuda(config), models_of(config), found["stages"]
    size = f"{models.policy.parameters / 1e9:.3g} B parameters"
    lines = [
        f"{config.recipe} on {config.model.path}, {size}, {_arithmetic(how)}; decimal GB on a GPU, every micro-batch "
        f"({config.microbatch_rows} tokens) full"
    ]
    rows = [
        ["stage", *PARTS],
        *([name, *(f"{need[part] / 1e9:.1f}" for part in PARTS)] for name, need in stages.items()),
    ]
    lines += [*in_columns(rows), ""]
    rows = [["card", "memory", "peak", "fits", *SPEEDS]]
    notes = []
    for name, said in found["cards"].items():
        card, fits, changed = CARDS[name], said["fits"], with_values(config, said["settings"])
        slowest = max((step_flops(changed, models, stage) for stage in stages), default=0.0)
        rollout = tokens_per_second(changed, models, how, card)
        step = slowest / card.flops
        speeds = (f"{rollout:,.0f} tokens/s" if config.members else "", f"{step:,.{1 if step < 10 else 0}f} s")
        answer = "no" if not fits else "as it is" if not said["settings"] else "with changes"
        peak = f"{largest(changed, models, how) / 1e9:.1f}"
        rows.append([name, f"{(card.memory - RESERVED) / 1e9:.0f}", peak, answer, *(speeds if fits else ("", ""))])
        if fits and said["settings"]:
            host = waiting(changed, models, how)
            aside = f" ({host / 1e9:.1f} GB wait in host memory)" if host else ""
            notes.append(f"{name}: {' '.join(flag(key, value) for key, value in said['settings'].items())}{aside}")
    lines += [*in_columns(rows), *notes]
    room = disk(config, models, how)
    lines.append(
        f"disk: {room.exports / 1e9:.1f} GB for the stages' folders and {room.checkpoints / 1e9:.1f} GB for the "
        "checkpoints of the one that is running"
    )
    return lines


def _arithmetic(how: Any) -> str:
    return f"{how.weights * 8}-bit weights" + (" with bfloat16 arithmetic" if how.half else "")


def flag(name: str, value: Any) -> str:
    """A setting as one types it."""
    return f"--{name.replace('_', '-')} {'none' if value is None else value}"
