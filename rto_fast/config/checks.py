"""Checks of settings' values."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, ClassVar, get_args

_RANGES: dict[str, Callable[[float], bool]] = {
    "a finite number": math.isfinite,
    "positive": lambda x: x > 0,
    "positive (none = no clip)": lambda x: x > 0,
    "positive and finite": lambda x: 0 < x < math.inf,
    "a positive number": lambda x: 0 < x < math.inf,
    "a positive number of seconds": lambda x: 0 < x < math.inf,
    "at least 1": lambda x: x >= 1,
    "0 or more": lambda x: x >= 0,
    "0 or more, and finite": lambda x: 0 <= x < math.inf,
    "in [0, 0.5)": lambda x: 0 <= x < 0.5,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "two numbers in [0, 1)": lambda x: 0 <= x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "in (0, 1]": lambda x: 0 < x <= 1,
    "in [0, 100]": lambda x: 0 <= x <= 100,
}
"""What a number may be, in the words of the error."""


def check(ok: bool, name: str, wanted: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


class Section:
    """Settings of which some are in a range, Annotated[float, "at least 1"]: of a tuple each number; None always is.

    Whoever reads a field's type finds it without the range.
    """

    ranges: ClassVar[dict[str, str]]
    prefix: ClassVar[str]

    def __init_subclass__(cls, prefix: str) -> None:
        cls.prefix, cls.ranges = prefix, {}
        for name, kind in cls.__annotations__.items():
            if hasattr(kind, "__metadata__"):
                cls.__annotations__[name], cls.ranges[name] = get_args(kind)

    def __post_init__(self) -> None:
        for name, wanted in self.ranges.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else [] if value is None else [value]
            check(all(map(_RANGES[wanted], numbers)), self.prefix + name, wanted, value)


def check_bounds(config: Any, prefix: str = "") -> None:
    """No number beyond what 32 bits hold, and no infinity but for a clip (no clip): sums and counts stay finite."""
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            check_bounds(value, name + ".")
        for x in value if isinstance(value, tuple) else (value,):
            bound = 2**63 - 1 if item.name in ("seed", "seeds") else 2**31 - 1
            unbounded = x == math.inf and "clip" in item.name
            if isinstance(x, int | float) and not (unbounded or abs(x) <= bound):
                raise ValueError(f"{name} must be a number of at most {bound}, got {x!r}")


def nothing(name: str, annotation: Any) -> float | str | None:
    """What the word "none" means as a field's value: None, no bound, or just that word."""
    if NoneType in get_args(annotation):
        return None
    return math.inf if "clip" in name else "none"
