"""One heat map of token rewards as an HTML fragment."""

from collections.abc import Mapping
from typing import Any

from rto_fast.report.html import missing, num, text
from rto_fast.report.read import number

MAX_TOKENS = 600


def heat(entry: Mapping[str, Any]) -> str:
    """Tokens tinted by reward over the largest magnitude of the map; a line where the entry is of another shape."""
    tokens, rewards, signs = (entry.get(k) for k in ("tokens", "rewards", "signs"))
    if not isinstance(tokens, list) or not isinstance(rewards, list) or len(tokens) != len(rewards):
        return missing("A heat map without one reward per token was left out.")
    values = [number(r) for r in rewards[:MAX_TOKENS]]
    top = max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    known = signs if isinstance(signs, list) and len(signs) == len(tokens) else [0] * len(tokens)
    spans = ""
    for token, value, sign in zip(tokens, values, known, strict=False):
        truth = {1: ", known to be right", -1: ", known to be wrong"}.get(sign if isinstance(sign, int) else 0, "")
        said = f"{text(str(token).strip() or repr(token), 40)}: {num(value)}{truth}"
        mark = ' data-sign="' + ("+" if sign == 1 else "−") + '"' if truth else ""
        shown = text(token, 80).replace("\n", "⏎") or "∅"
        tint = f"--v:{(value or 0.0) / top:.3f}"
        spans += f'<span class="hm-token" tabindex="0" style="{tint}" title="{said}"{mark}>{shown}</span>'
    cut = f" … {len(tokens) - MAX_TOKENS:,} more tokens" if len(tokens) > MAX_TOKENS else ""
    return f'<div class="hm">{spans}{cut}</div>'
