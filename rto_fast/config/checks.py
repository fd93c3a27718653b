"""Checks of settings' values."""

import math
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args


def check(ok: bool, name: str, wanted: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def check_bounds(config: Any, prefix: str = "") -> None:
    """No number beyond what 32 bits hold, and no infinity but for a clip (no clip): sums and counts stay finite."""
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            check_bounds(value, name + ".")
        for x in value if isinstance(value, tuple) else (value,):
            bound = 2**63 - 1 if item.name in ("seed", "seeds") else 2**31 - 1
            unbounded = x == math.inf and may_be_infinite(item.name)
            if isinstance(x, int | float) and not (unbounded or abs(x) <= bound):
                raise ValueError(f"{name} must be a number of at most {bound}, got {x!r}")


def may_be_infinite(name: str) -> bool:
    """Whether a number may be without bound: a clip (no clip)."""
    return "clip" in name


def nothing(name: str, annotation: Any) -> float | str | None:
    """What the word "none" means as a field's value: None, no bound, or just that word."""
    if NoneType in get_args(annotation):
        return None
    return math.inf if may_be_infinite(name) else "none"
