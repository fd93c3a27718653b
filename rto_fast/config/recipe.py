"""Recipes: TOML files as configurations, checked key by key and value by value."""

import dataclasses
import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from rto_fast.config import Config
from rto_fast.config.checks import nothing
from rto_fast.files.regular import irregular, read_regular

RECIPES = Path(__file__).parents[1] / "recipes"
MAX_BYTES = 256 * 2**10
MAX_DOTS, MAX_ALL_DOTS = 100, 20_000
"""In a line of TOML and in a file: the parts of a key are what takes time, and we have no table deeper than four."""


def load_recipe(name: str) -> Config:
    """The named recipe, or a TOML file's. Unknown keys and recipes raise ValueError with the nearest real name.

    A recipe that `extends` another one changes some of its values.
    """
    return build(Config, {**_values(name, ()), "recipe": name}, f"recipe {name}")


def _values(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.toml"))
        said = f"no {name!r}{_nearest(name, known)}"
        if os.path.lexists(name):
            other = "a file whose name does not end in .toml" if os.path.exists(name) else "a link that leads nowhere"
            said = f"{name!r} is {irregular(name) or other}"
        raise ValueError(f"recipe: {said}; recipes: {', '.join(known)}, or a .toml file")
    values = read_toml(path, f"recipe {name}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or base in (*seen, name):
        raise ValueError(f"recipe {name}: extends must name another recipe, got {base!r}")
    return _merged(_values(base, (*seen, name)), values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **over, **both}


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """A TOML file. Raises ValueError that begins with `where` for one that is too large, not UTF-8 or no TOML."""
    try:
        return parse_toml(read_regular(path, MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror or error}; give a file of settings alone") from None
    except ValueError as error:  # bad syntax, bad UTF-8, a number of too many digits
        raise ValueError(f"{where}: not valid TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML file's text says. ValueError where it is none, or nested too deeply."""
    # the library takes minutes over a key of ten thousand parts
    dots = [len(re.findall(r"\.+", line)) for line in text.split("\n")]
    if max(dots) > MAX_DOTS or sum(dots) > MAX_ALL_DOTS:
        raise ValueError(f"nested too deeply, more than {MAX_DOTS} dots in a line or {MAX_ALL_DOTS:,} in all")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build(cls: type, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """A config dataclass from nested plain values. `source` is named in errors."""
    types, defaults = {f.name: f.type for f in dataclasses.fields(cls)}, cls()
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{source}: unknown key {prefix + key!r}{_nearest(key, types)}")
        default = getattr(defaults, key)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {prefix + key} must be a table, got {value!r}")
            # a partial table keeps the field's own defaults, which can differ from its class's
            value = build(type(default), {**plain(default), **value}, source, f"{prefix}{key}.")
        else:
            value = _typed(value, key, types[key], default, f"{source}: {prefix + key}")
        built[key] = value
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _typed(value: Any, name: str, kind: Any, default: Any, where: str) -> Any:
    if value == "none":
        value = nothing(name, kind)
    if isinstance(value, list):
        value = tuple(nothing(name, kind) if x == "none" else x for x in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if "\0" in str(value):
        raise ValueError(f"{where} must be text without NUL, got {value!r}")
    if not _fits(value, kind):
        if _fits((value,), kind):
            raise ValueError(f"{where} must be a list, got {value!r}; write [{value!r}]")
        literals = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is Literal]
        choices = [str(c) for part in literals for c in typing.get_args(part)]
        wanted = f"one of {', '.join(choices)}" if choices else _words(kind)
        raise ValueError(f"{where} must be {wanted}, got {value!r}{_nearest(str(value), choices)}")
    return value


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a TOML value is of the type an annotation names: a class, Literal, X | None, tuple[X, ...] or dict."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        each = [parts[0]] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(v, parts[1]) for v in value.values())
    if annotation in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def _words(annotation: Any) -> str:
    """A type in a reader's words."""
    if isinstance(annotation, type):
        return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[annotation]
    parts = [part for part in typing.get_args(annotation) if part not in (type(None), Ellipsis)]
    words = " or ".join(dict.fromkeys(_words(part) for part in parts))
    return f"a list, each {words}" if typing.get_origin(annotation) is tuple else words


def _nearest(name: str, known: Iterable[object]) -> str:
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def plain(config: Any, each: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    """Nested plain values that TOML can hold, through `each`: None is left out, tuples become lists."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None}
        return [clean(v) for v in value] if isinstance(value, tuple | list) else each(value)

    return clean(dataclasses.asdict(config))
