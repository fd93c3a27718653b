"""Without a recipe: settings for people's own models and data, chosen by the model's shape and the number of rows.

A chosen value is an ordinary setting: a flag overrides it, config.toml holds it, the same command chooses it again.
Learning rates go by the number of parameters: straight lines in log-log through these points, level beyond them.

    size     sft    dpo    rm     policy  critic
    0.26 M   2e-3   1e-4   1e-4   1e-4    1e-3    the recipes hh_small and hh_compare
    2.8 B    1e-5   5e-6   1e-5   5e-6    5e-6    arXiv:2404.18922 v1, tables 2 to 5 (rto_v1_hh)
    8 B      5e-6   5e-7   9e-6   5e-7    9e-6    OpenRLHF's scripts for Llama; the paper's code (rto_icml)

Adapters learn at ten times these rates (Schulman et al. 2025, LoRA Without Regret: about 10 at every size and rank).
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, Self

from rto_fast.config import NEUTRAL, Config

OWN = (
    *("--model.path", "--sft.model", "--dpo.model", "--rm.model"),
    *("--data.path", "--data.prompts", "--data.demonstrations", "--data.evaluation"),
)
"""Flags that say: this is the user's own."""

SIZES = (0.26e6, 2.8e9, 8e9)
RATES = {
    "sft.optim.lr": (2e-3, 1e-5, 5e-6),
    "dpo.optim.lr": (1e-4, 5e-6, 5e-7),
    "rm.optim.lr": (1e-4, 1e-5, 9e-6),
    "rto.optim.lr": (1e-4, 5e-6, 5e-7),
    "rto.critic.lr": (1e-3, 5e-6, 9e-6),
}
ADAPTERS = 10
"""Times the rate of whole models."""
MAX_LENGTH = 1024
"""TRL's DPOConfig. A longer context is used where data.max_length asks for it."""
HELD_OUT = 256
SHARE = 20
"""One row of so many is held out, from 8 (at most a quarter) up to HELD_OUT."""
LOOK = HELD_OUT * SHARE
"""Rows that have to be counted: beyond them nothing changes."""
BATCH, ROLLOUTS = 32, 256
"""v1, tables 2 to 5; less where an epoch would have fewer than 32 steps, a pass over the prompts fewer than 8
iterations."""
BUDGET = 4 * 2**30
"""Bytes of float32 that a micro-batch's activations may take, and so many that a rollout's keys and values may; as
many as the weights where these take more."""
FIXED = {
    "recipe": NEUTRAL,
    # between the paper's b1/b2 = 3 and 1, which can only tie with DPO; bounded as in the authors' code
    **{"rto.reward.beta_1": 0.1, "rto.reward.beta_2": 0.05, "rto.reward.clip": 0.05},
    # hh_small
    "rto.reward.missing_eos_penalty": 1.0,
    # the authors' code
    "rto.ppo_epochs": 1,
    **{"rto.optim.schedule": "cosine", "rto.optim.warmup": 0.03, "dpo.optim.warmup": 0.1},
}


class Shape(NamedTuple):
    """What a model's configuration says."""

    parameters: int
    context: int | None
    """Longest sequence in tokens"""
    activations: int
    """Bytes of float32 per row, for the backward"""
    cache: int
    """Bytes of float32 per token, keys and values"""


class _Later:
    """In the place of a number that is still to be chosen: passes every check, and is words in --help."""

    words: str

    def called(self, words: str) -> Self:
        self.words = words
        return self

    def __repr__(self) -> str:
        return self.words

    def __mod__(self, divisor: Any, /) -> Any:
        return 0


class _LaterRate(_Later, float): ...


class _LaterCount(_Later, int): ...


LATER = {
    **dict.fromkeys(RATES, _LaterRate(1e-5).called("by-model-size")),
    **dict.fromkeys(("microbatch_rows", "rto.sampling.batch_size"), _LaterCount(1).called("by-model-size")),
    "data.max_length": _LaterCount(2**31 - 1).called("by-model-context"),
    "data.max_prompt": _LaterCount(1).called("half-of-max-length"),
    **dict.fromkeys(
        ("data.held_out", "sft.batch_size", "dpo.batch_size", "rm.batch_size", "rto.rollouts"),
        _LaterCount(1).called("by-number-of-rows"),
    ),
    "rto.minibatch": _LaterCount(1).called("rollouts/8"),
}


def is_own(args: Sequence[str], tasks: Sequence[str]) -> bool:
    """Whether a command line names a model or data of the user's; `tasks` are none."""
    words = zip(args, [*args[1:], ""], strict=False)
    given = [word.split("=", 1) if "=" in word else [word, value] for word, value in words]
    return any(flag in OWN and value.lower() not in ("none", "", *tasks) for flag, value in given)


def base() -> Config:
    """The settings before anything is known of the model and the data."""
    return with_values(Config(), FIXED | LATER)


def choose(config: Config, shape: Shape, rows: int) -> tuple[Config, list[str]]:
    """Fill in what flags have left to be chosen, and say what and why, in lines.

    shape  of model.path
    rows   of the data, counted up to LOOK
    """
    size = shape.parameters
    sized = f"{size / 1e9:.3g} B parameters" if size >= 1e9 else f"{size / 1e6:.3g} M parameters"
    counted = f"{rows:,} rows" + (" or more" if rows >= LOOK else "")
    chosen: dict[str, tuple[Any, str]] = {}
    for name in RATES:
        adapted = config.adapter.rank is not None and not (name == "sft.optim.lr" and config.adapter.full_sft)
        times, why = (ADAPTERS, f"{sized}, adapters") if adapted else (1, sized)
        chosen[name] = (float(f"{times * rate(name, size):.2g}"), why)

    data, new = config.data, config.rto.sampling.max_new_tokens
    limit = shape.context or sys.maxsize
    length = data.max_length
    if _later(length):
        asked = 0 if _later(data.max_prompt) else data.max_prompt
        length = max(min(limit, max(MAX_LENGTH, 2 * asked)), asked + 1)
        context = "the model's context" if length == limit else f"the model's context is {shape.context or 'not named'}"
        chosen["data.max_length"] = (length, context)
    prompt = data.max_prompt
    if _later(prompt):
        prompt = max(1, min(length // 2, length - 1 if new is None else limit - new))
        chosen["data.max_prompt"] = (prompt, "half of max_length" if prompt == length // 2 else "room for the answer")

    held_out = data.held_out
    if _later(held_out):
        held_out = min(HELD_OUT, max(8, rows // SHARE), rows // 4)
        chosen["data.held_out"] = (held_out, counted)
    train = max(0, rows - held_out)
    batches = ("sft.batch_size", "dpo.batch_size", "rm.batch_size")
    chosen |= dict.fromkeys(batches, (_power(train / 32, 4, BATCH), counted))
    rollouts, minibatch = config.rto.rollouts, config.rto.minibatch
    if _later(rollouts):
        grouped = config.rto.critic.kind == "group" or "grpo" in config.stages
        step = config.rto.group if grouped else 1
        least = max(_power(train / 8, 16, ROLLOUTS), 0 if _later(minibatch) else minibatch)
        rollouts = math.ceil(least / step) * step
        chosen["rto.rollouts"] = (rollouts, counted)
    chosen["rto.minibatch"] = (max(1, rollouts // 8), "rollouts / 8")

    budget = max(BUDGET, 4 * size)
    fits = f"memory of each at most {budget / 2**30:.2g} GiB"
    # a pair's prompt and answers stay together
    chosen["microbatch_rows"] = (max(_power(budget / shape.activations, 1, 16384), 2 * length), fits)
    answers = budget / (shape.cache * (prompt + (new or max(1, length - prompt))))
    chosen["rto.sampling.batch_size"] = (_power(answers, 1, 256), fits)

    taken = {name: value for name, value in chosen.items() if _later(attrgetter(name)(config))}
    return with_values(config, {name: value for name, (value, _) in taken.items()}), _lines(config, taken)


def rate(name: str, parameters: int) -> float:
    """The learning rate of a field of RATES for a model of that size, to two digits."""
    rates, x = RATES[name], math.log(min(max(parameters, SIZES[0]), SIZES[-1]))
    left, right = (0, 1) if x <= math.log(SIZES[1]) else (1, 2)
    share = (x - math.log(SIZES[left])) / math.log(SIZES[right] / SIZES[left])
    return float(f"{rates[left] ** (1 - share) * rates[right] ** share:.2g}")


def _power(x: float, least: int, most: int) -> int:
    """The largest power of two up to x, within bounds."""
    return min(max(2 ** math.floor(math.log2(max(x, 1))), least), most)


def _lines(config: Config, chosen: dict[str, tuple[Any, str]]) -> list[str]:
    """What was chosen for the stages that will run, a line for each reason."""
    silent = {"sft", "dpo", "rm"} - set(config.stages) | (set() if config.members else {"rto"})
    by_reason: dict[str, list[str]] = {}
    for name, (value, reason) in chosen.items():
        if name.partition(".")[0] not in silent:
            shown = f"{value:g}" if isinstance(value, float) else value
            by_reason.setdefault(reason, []).append(f"{name} {shown}")
    return [f"chosen: {', '.join(values)} ({reason})" for reason, values in by_reason.items()]


def _later(value: Any) -> bool:
    return isinstance(value, _Later)


def with_values(config: Any, values: dict[str, Any]) -> Any:
    """The configuration with values by dotted name, each of its tables replaced once, so that checks see all of it."""
    own = {name: value for name, value in values.items() if "." not in name}
    for head in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        inner = {name.removeprefix(f"{head}."): x for name, x in values.items() if name.startswith(f"{head}.")}
        own[head] = with_values(getattr(config, head), inner)
    return replace(config, **own)
