"""The URL of a server that is asked: what may be shown of it, and what is never shown."""

import base64
import json
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, unquote_plus, urlsplit

SHORTEST_SECRET = 3
"""A server that echoes fewer characters than this gives nothing away."""


@dataclass(frozen=True)
class Address:
    url: SplitResult = field(repr=False)
    """Without credentials and fragment."""
    shown: str
    """Without anything that may be secret."""
    authorization: str | None = field(repr=False)
    """The header that the credentials ask for: the key's, else that of the URL's name and password."""
    secrets: tuple[str, ...] = field(repr=False)
    """What must not be shown of the URL, the header and the key."""

    def hide(self, text: str) -> str:
        """What a server said, without the secrets that it was sent."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def read_address(url: str, name: str, example: str, key: str = "") -> Address:
    """The parts of an http(s) URL. Raises ValueError, one sentence that begins with `name` and shows no secret."""
    wanted = f"{name}: wanted a url like {example}"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{wanted}, got one with whitespace or other than ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ValueError(f"{wanted}, got one with a host or port that cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        got = "one without http:// and a host" if any(c in url for c in "@?#") else repr(url[:100])
        raise ValueError(f"{wanted}, got {got}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    clean = parts._replace(netloc=host if port is None else f"{host}:{port}", fragment="")
    shown = clean._replace(query="***" if clean.query else "").geturl()
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = "" if parts.username is None else base64.b64encode(pair.encode()).decode()
    authorization = f"Bearer {key}" if key else f"Basic {basic}" if basic else None
    pieces = [piece.partition("=") for piece in parts.query.split("&")]
    values = [value if equals else bare for bare, equals, value in pieces]
    raw = [key, basic, parts.username or "", parts.password or "", parts.fragment, parts.query, *values]
    secrets = {*raw, *map(unquote, raw), *map(unquote_plus, raw)}
    # also as they look quoted in JSON and in Python
    secrets |= {quoted(s)[1:-1] for s in secrets for quoted in (json.dumps, repr)}
    long = sorted((s for s in secrets if len(s) >= SHORTEST_SECRET), key=len, reverse=True)
    return Address(clean, shown, authorization, tuple(long))
