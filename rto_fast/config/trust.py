"""Python code of others runs only where the command line of the moment asks for it, never because a file does.

A file is a recipe, one that it extends, or a run folder's config.toml, which remembers that trust was given and gives
none.
"""

import shlex
from dataclasses import replace
from typing import Any

from rto_fast.config import Config, ScoreConfig

_NO_RULE = "regex:."
"""In the place of a rule that is code: a rule that is none, so that a score has a source all the same."""


def asked(config: Config) -> dict[str, str]:
    """What of a configuration has code run: by field, the flag that allows it."""
    rule = config.rto.score.rule if config.rto.score.runs_code else None
    return _flags(config.model.trust_remote_code, rule)


def _flags(remote: bool, rule: str | None) -> dict[str, str]:
    flags = {"model.trust_remote_code": "--model.trust-remote-code True"} if remote else {}
    return flags if rule is None else {**flags, "rto.score.rule": f"--rto.score.rule {shlex.quote(rule)}"}


def without_code(config: Config) -> Config:
    """The same configuration, asking for no code."""
    score = replace(config.rto.score, rule=_NO_RULE) if config.rto.score.runs_code else config.rto.score
    model = replace(config.model, trust_remote_code=False)
    return replace(config, model=model, rto=replace(config.rto, score=score))


def check_granted(config: Config, granted: Config, source: str) -> None:
    """ValueError where `config` asks for code that `granted`, which holds the flags' wishes alone, does not."""
    missing = {field: flag for field, flag in asked(config).items() if flag not in asked(granted).values()}
    if missing:
        raise ValueError(
            f"{source}: {' and '.join(missing)} would run Python code, which no file can allow; read that code, then "
            f"add {' '.join(missing.values())} to the command"
        )


def check_tool(config: Config, trusted: bool, run: object) -> None:
    """ValueError where a run whose models were opened with their own code is to be looked at without."""
    if config.model.trust_remote_code and not trusted:
        raise ValueError(
            f"run: {run} was trained with --model.trust-remote-code True, so its models may bring Python code; read "
            "it, then add --trust-remote-code to this command"
        )


def forgotten(before: dict[str, Any], now: Config) -> dict[str, str]:
    """What a run folder (`before`: its settings, flat) remembers was allowed and `now` does not allow: by field, the
    flag that does."""
    remote = before.get("model.trust_remote_code") is True and not now.model.trust_remote_code
    rule = before.get("rto.score.rule")
    kept = isinstance(rule, str) and ScoreConfig(rule=rule).runs_code and now.rto.score.rule is None
    return _flags(remote, rule if kept else None)
