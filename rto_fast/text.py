"""Text that comes from others: whether it is text, and what of it may be printed."""

import re

_CREDENTIALS = re.compile(r"\b(https?://)[^/\s'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"\b(https?://[^\s?'\"]*\?)[^\s'\"]+", re.IGNORECASE)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """False for a string with a lone surrogate, which JSON allows and no tokenizer or file takes."""
    return _SURROGATE.search(text) is None


def without_secrets(text: str) -> str:
    """The text with the name and password in front of a URL's host, and what follows its question mark, as ***."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def one_line(text: object, limit: int = 1000) -> str:
    """A text as one line that is safe to print: no line breaks, terminal escapes or secrets, not beyond `limit`."""
    line = " ".join(without_secrets(str(text))[: 4 * limit].split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= limit else f"{line[: limit * 3 // 4]} ... {line[-limit // 4 :]}"
