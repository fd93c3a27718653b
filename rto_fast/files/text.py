"""Text that comes from others: whether it is text, and what of it may be printed. Numbers and tables as people read
them."""

import re
from collections.abc import Sequence

_SCHEME = r"\b[a-z][a-z0-9+.-]{0,20}://"
_URL = re.compile(rf"""(?P<quote>['"])({_SCHEME})((?:(?!(?P=quote))\S)*)|({_SCHEME})(\S*)""", re.IGNORECASE)
_PARTS = re.compile(r"([^/?#]*)([^?#]*)([?#]?)(.*)", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """False for a string with a lone surrogate, which JSON allows and no tokenizer or file takes."""
    return _SURROGATE.search(text) is None


def valid(text: str) -> str:
    """The text with halves of surrogate pairs, which no file and no request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_secrets(text: str) -> str:
    """The text with what may be secret in its URLs as ***: name and password, and all behind the first ? or #."""
    return _URL.sub(_without_secrets, text)


def _without_secrets(found: re.Match[str]) -> str:
    quote, scheme, rest = (found[1], found[2], found[3]) if found[1] else ("", found[4], found[5])
    parts = _PARTS.match(rest)
    assert parts  # of an empty rest too
    authority, path, mark, behind = parts.groups()
    _, at, host = authority.rpartition("@")
    # a / in a password ends the authority too early: what is left of it looks like a port with a letter
    if not at and re.match(r"[^:\[]*:.*[^\W\d]", authority):
        return f"{quote}{scheme}***"
    return f"{quote}{scheme}{'***@' if at else ''}{host}{path}{mark}{'***' if behind else ''}"


def one_line(text: object, limit: int = 1000) -> str:
    """A text as one line that is safe to print: no line breaks, terminal escapes or secrets, not beyond `limit`."""
    line = " ".join(without_secrets(str(text))[: 4 * limit].split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= limit else f"{line[: limit * 3 // 4]} ... {line[-limit // 4 :]}"


def in_words(count: int) -> str:
    """Bytes as people read them: 3.2 GiB."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, indented: each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in padded]
