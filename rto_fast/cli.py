"""What every command has in common: flags become settings, and a mistake is one line and exit status 2."""

import contextlib
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import tyro

from rto_fast.config.checks import nothing
from rto_fast.files.text import is_unicode, one_line, without_secrets
from rto_fast.files.unread import Unread, discard, unread

Settings = TypeVar("Settings")

TRACEBACK = "--traceback"
"""Not a setting: it is taken off the command line before the rest is read, and never written down."""
MAX_WORD = 4096


def parse(
    settings: type[Settings],
    args: Sequence[str],
    prog: str,
    *,
    default: Settings | None = None,
    onoff: bool = True,
    more: Sequence[str] = (),
) -> Settings:
    """Flags as a dataclass, over `default`. Raises ValueError, one line, naming the flag.

    more   lines of --help about words that are no settings
    onoff  True: a yes-or-no setting is a pair of flags, --x and --no-x; False: it takes a value, --x True
    """
    check_words(args)
    more = [inspect.getdoc(settings) or "", *more, f"{TRACEBACK}: an error shows where in the code it came from."]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(  # type: ignore[return-value]  # it takes None for no default
                settings,
                args=_none_as_meant(settings, args),
                default=default,
                prog=prog,
                description="\n\n".join(more),
                config=() if onoff else (tyro.conf.FlagConversionOff,),
                registry=_registry(),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        hidden = [without_secrets(word) for word in args]
        if hidden == list(args):
            raise ValueError(_one_line(said.getvalue())) from None
    # tyro's box breaks long words over lines, where what is secret in them could not be recognised any more
    parse(settings, hidden, prog, default=default, onoff=onoff, more=more)
    raise ValueError("the command line cannot be read; see --help")


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Names for names are given as --data.columns prompt=question chosen=better."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def names(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type != dict[str, str]:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=YOURS ...",
            instance_from_str=_pairs,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{name}={yours}" for name, yours in value.items()],
        )

    return registry


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, _, yours = word.partition("=")
        if not (name and yours) or name in pairs:
            fault = "given twice" if name in pairs else "not of the form NAME=YOURS"
            raise ValueError(f"{word[:80]!r} is {fault}; write them as prompt=question chosen=better")
        pairs[name] = yours
    return pairs


def _none_as_meant(settings: type, args: Sequence[str]) -> list[str]:
    """The word none, which --help uses, as what the setting before it takes for it: None, or inf for a bound."""
    words, flag = [], ""
    for word in args:
        head, equals, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        flag = head
        if value.lower() == "none":
            value = _nothing(settings, head.removeprefix("--").replace("-", "_").split("."))
        words.append(head + equals + value if word.startswith("--") else value)
    return words


def _nothing(settings: Any, path: list[str]) -> str:
    name, *rest = path
    kind = {item.name: item.type for item in fields(settings)}.get(name)
    if is_dataclass(kind) and rest:
        return _nothing(kind, rest)
    return "none" if kind is None else str(nothing(name, kind))


def check_words(args: Sequence[str]) -> None:
    """Raises ValueError for a word that must not reach a path, a terminal or a search for the nearest flag."""
    for flag, word in zip(["the first word", *args], args, strict=False):
        if len(word) > MAX_WORD or "\0" in word or not word.isascii() and not is_unicode(word):
            said = f"{word[:40]!r}{' and so on' if len(word) > 40 else ''}"
            raise ValueError(f"{flag[:40]}: wanted UTF-8 text of at most {MAX_WORD} characters without NUL, got {said}")


def _one_line(box: str) -> str:
    """What tyro's error box says, without its frame and its closing advice."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │|") for line in box.splitlines() if not line.startswith(("╭", "╰", "+-"))]
    parts = re.split(r"\n[─-]{5,}\n", "\n".join(lines))
    meant = re.search(r"Perhaps you meant:\s+(\S+)", box.replace("│", " "))
    # in plain ASCII the title is a part of its own
    parts = [part for part in parts if not part.strip().startswith("For full helptext")]
    said = next((part for part in parts if len(part.split()) > 3), parts[-1])
    message = " ".join(said.split()).rstrip(".")
    return message + (f" (did you mean {meant[1]}?)" if meant else "") + "; see --help"


def run(work: Callable[[list[str]], object], args: Sequence[str] | None, interrupted: str, viewer: bool = False) -> int:
    """Do work(args without --traceback) and return the exit status.

    0 done; 2 bad input, one line on stderr; 130 interrupted, with `interrupted` to say what that means. Anything else
    is a fault of ours, and comes with a traceback. When the reader of the output (head, less) goes away the work is
    done to its end without one; a `viewer`, which does nothing but print, stops there: 0 too.
    """
    args = list(sys.argv[1:] if args is None else args)
    with unread(stdout=not viewer):
        # texts may hold characters that the terminal's encoding lacks
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            work([word for word in args if word != TRACEBACK])
            sys.stdout.flush()
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            if viewer and isinstance(error, BrokenPipeError):
                discard(sys.stdout)  # python must not complain about it while closing stdout
                return 0
            if TRACEBACK in args:
                traceback.print_exception(error)
            Unread(sys.stdout).flush()
            full = "memory ran out; give fewer rows, such as with --data.max-rows"
            said = full if isinstance(error, MemoryError) else one_line(error) or type(error).__name__
            if os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first alone speaks, for all
                return 2
            print(f"rto_fast: error: {said}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"\nrto_fast: interrupted. {interrupted}", file=sys.stderr)
            return 130
    return 0
