"""A stranger's tokenizer is looked at, and tried on short texts in a child process, before this process loads it.

A tokenizer.json is a small program: what each of its steps makes of a text is the next one's input, so that some twenty
steps of one replacement each fill any memory. A vocabulary takes as much as its largest id.
"""

import math
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rto_fast.data.isolate import in_child
from rto_fast.files.text import is_unicode, one_line

MAX_ID = 2**24
"""The largest vocabularies have a million tokens."""
MAX_GROWTH = 32
"""Characters between two steps, tokens, and characters of what is decoded from them, for each character of a text."""
SECONDS, MEGABYTES = 5.0, 1024
"""What loading and trying may take, for a small file; and a second and 32 MiB more for each MiB of it."""

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MAX_PROBES, _MAX_PROBE = 200, 1000
_TAKES_SOME = re.compile(r"(\\[sSdDwWntr]|\\?[^\\\w|()?*+{}^$.\[\]]|\w|\[\^?[^\[\]]+\])+(\+|\{[1-9]\d*,?\d*\})?")
"""Expressions that match at least a character, as those of real tokenizers do; others are taken not to."""


def check_ids(file: Path, content: dict[str, Any], where: str) -> None:
    """Raises ValueError, beginning with `where`, for a token id above `MAX_ID` in one of a tokenizer's JSON files."""
    for token, i in _ids(file.name, content):
        if isinstance(i, int) and i > MAX_ID:
            raise ValueError(
                f"{where} gives {one_line(repr(token), 100)} the id {one_line(i, 40)}; ids of a vocabulary are at "
                f"most {MAX_ID:,}"
            )


def _ids(name: str, content: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(token, id) as they stand there, whatever they are."""
    if name in ("vocab.json", "added_tokens.json"):
        yield from content.items()
    model, added, later = (content.get(key) for key in ("model", "added_tokens", "added_tokens_decoder"))
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        yield from model["vocab"].items()
    if isinstance(added, list):
        yield from ((token.get("content"), token.get("id")) for token in added if isinstance(token, dict))
    if isinstance(later, dict):
        yield from ((token, int(i)) for i, token in later.items() if i.isascii() and i.isdigit() and len(i) < 20)


def try_tokenizer(file: Path, content: dict[str, Any], where: str) -> None:
    """Raises ValueError, beginning with `where`, for a tokenizer.json that takes too long or too much memory, or makes
    far more of a text than there is. What is merely broken is left to the library to say."""
    fix = "give an undamaged copy"
    for name in _STEPS:
        if (most := math.prod(map(_growth, _replacements(content.get(name))))) > MAX_GROWTH:
            raise ValueError(
                f"{where} may make {most:,.0f} characters of one by what its {name} replaces, at most {MAX_GROWTH} for "
                f"each are wanted; {fix}"
            )
    texts = {"a", " ", "a b", "The cat sat on the mat. " * 4, string.printable, *_own_words(content)}
    probes = sorted(texts, key=lambda text: (len(text), text))  # the sooner it is found

    def work() -> tuple[str, int] | None:
        try:
            tokenizer = Tokenizer.from_file(str(file))
            # which are never asked for
            tokenizer.no_padding()
            tokenizer.no_truncation()
            sizes = ((text, size) for text in probes for size in _sizes(tokenizer, text))
            return next(((text, size) for text, size in sizes if size > MAX_GROWTH * len(text) + 64), None)
        except Exception:  # the library raises a bare Exception for whatever is wrong with a file
            return None

    size = file.stat().st_size / 2**20
    memory = MEGABYTES + round(32 * size)
    if grown := in_child(work, where, fix, seconds=SECONDS + size, megabytes=memory):
        text, size = grown
        raise ValueError(
            f"{where} makes {size:,} characters or tokens of {one_line(repr(text), 60)}, at most {MAX_GROWTH} for each "
            f"are wanted; {fix}"
        )


def _sizes(tokenizer: Tokenizer, text: str) -> Iterator[int]:
    """Characters or tokens that stand for the text after each step: one unknown word may hide millions."""
    normal = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    yield len(normal)
    if tokenizer.pre_tokenizer is not None:
        yield sum(len(piece) for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    ids = tokenizer.encode(text).ids
    yield len(ids)
    yield len(tokenizer.decode(ids, skip_special_tokens=False))


def _replacements(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("type") in ("Replace", "Precompiled"):
            yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _replacements(inner)


def _growth(step: dict[str, Any]) -> float:
    """The most characters that a replacement makes of one, whatever the text: none has to be found that grows.

    An expression may match a single character, and what is put there comes on top of it where one may match none.
    """
    if step.get("type") == "Precompiled":  # a table of them that cannot be looked into: one, not two
        return MAX_GROWTH / 4
    content, pattern = step.get("content"), step.get("pattern")
    length = len(content) if isinstance(content, str) else 0
    pattern = pattern if isinstance(pattern, dict) else {}
    if isinstance(plain := pattern.get("String"), str) and plain:
        return max(1.0, length / len(plain))
    takes_some = isinstance(found := pattern.get("Regex"), str) and _TAKES_SOME.fullmatch(found)
    return max(1.0, length if takes_some else length + 1)


def _own_words(content: dict[str, Any]) -> list[str]:
    """The texts that its steps look for and put in their place: a step that grows starts with one of them."""
    found = _strings([content.get(name) for name in _STEPS])
    words = list(dict.fromkeys(text for text in found if text and len(text) <= _MAX_PROBE and is_unicode(text)))
    return [*words[:_MAX_PROBES], *("".join(words[i : i + 50]) for i in range(_MAX_PROBES, len(words), 50))]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
