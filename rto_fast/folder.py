"""A run's output folder: one configuration, written beside its results."""

import os
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rto_fast.config import Config
from rto_fast.recipe import plain

FREE = {"device", "log_every", "stages", "output", "workspace_mb", "microbatch_rows", "resume", "compare.seeds"}
"""Settings that may change between two calls on one folder: they do not change what is computed."""


def claim(config: Config) -> Path:
    """Make the run's folder and write config.toml, or go on in a folder that the same configuration made."""
    folder = check(config)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.toml").is_file():
        # half a configuration would make the folder nobody's
        partial = folder / "config.toml.partial"
        partial.write_text(tomli_w.dumps(plain(config)), encoding="utf-8")
        os.replace(partial, folder / "config.toml")
    return folder


def check(config: Config) -> Path:
    """The run's folder, untouched. Raises ValueError when it belongs to another run or holds something else."""
    folder = config.folder
    written = folder / "config.toml"
    if not written.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"output: {folder} exists and is no run of rto_fast; name another with --output")
        return folder
    try:
        before = tomllib.loads(written.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ValueError(
            f"output: {written} is not valid TOML; name another folder with --output, or delete it"
        ) from None
    changed = _differences(_flat(before), _flat(plain(config)))
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(f"output: {folder} holds another run ({shown}); name another with --output, or delete it")
    return folder


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    keys = [k for k in {**before, **now} if k not in FREE and not k.startswith("checkpoint.")]
    return [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in keys if before.get(k) != now.get(k)]
