"""A run's settings on disk, config.toml: written by `folder.claim`, read by nobody outside of this room."""

from pathlib import Path
from typing import Any

from rto_fast.config import Config
from rto_fast.config.recipe import MAX_BYTES, build, parse_toml, read_toml
from rto_fast.files.regular import read_regular

SETTINGS = "config.toml"


def is_run(folder: Path) -> bool:
    return (folder / SETTINGS).is_file()


def check_run(folder: Path) -> None:
    """ValueError where the folder is no run's."""
    if not is_run(folder):
        raise ValueError(f"run: no {SETTINGS} in {str(folder)!r}; give the folder of a run, such as runs/quickstart")


def read_config(folder: Path, field: str) -> Config:
    """The settings that a run was made with. ValueError, beginning with `field`, where they are damaged."""
    where = f"{field}: {folder / SETTINGS}"
    return build(Config, read_toml(folder / SETTINGS, where), where)


def as_they_stand(folder: Path) -> dict[str, Any]:
    """The settings unchecked, for readers that make do with whatever there is. OSError, ValueError without any."""
    return parse_toml(read_regular(folder / SETTINGS, MAX_BYTES).decode("utf-8-sig", errors="replace"))
