"""Text, numbers and tables as HTML. Everything that comes from a run passes through `text`."""

import html
import math
from collections.abc import Sequence

MAX_TEXT = 4000
"""Characters of one piece of text; the rest is counted."""
_TABLE = {i: 0x2400 + i for i in range(32) if i not in (9, 10)} | {127: 0x2421}
# C1 controls, overrides of the writing direction, and what HTML cannot hold
_TABLE |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF], 0xFFFD)


def text(value: object, most: int = MAX_TEXT) -> str:
    """Any value as text that is safe in an element and in a quoted attribute, bounded, control characters visible."""
    raw = str(value)
    cut = f" … ({len(raw) - most:,} more characters)" if len(raw) > most else ""
    # a lone surrogate cannot be written as UTF-8
    clean = raw[:most].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return html.escape(clean.translate(_TABLE) + cut, quote=True)


def num(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits, thousands apart; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and (abs(value) >= 1e7 or abs(value) < 1e-4):
        shown = f"{value:.2e}"
    else:
        places = digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1
        shown = f"{value:,.{min(max(places, 0), 5)}f}"
    return shown.replace("-", "−")


def figure(mean: float, half: float) -> str:
    """mean ± half-width, as precise as the half-width."""
    if half <= 0:
        return num(mean)
    if max(abs(mean), half) >= 1e7 or half < 1e-4:
        return f"{num(mean)} ± {num(half, 2)}"
    places = _places(half)
    return f"{mean:,.{places}f} ± {half:,.{places}f}".replace("-", "−")


def span(low: float, high: float, half: float) -> str:
    """low to high, as precise as the half-width of the mean between them; nothing where the two look the same."""
    if max(abs(low), abs(high)) >= 1e7 or half < 1e-4:
        ends = [num(low), num(high)]
    else:
        ends = [f"{v:,.{_places(half)}f}".replace("-", "−") for v in (low, high)]
    return "" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _places(half: float) -> int:
    """Decimals that show one digit of the half-width, two where it begins with 1 to 4."""
    exponent = math.floor(math.log10(half))
    return min(max((half < 5 * 10.0**exponent) - exponent, 0), 5)


def percent(mean: float, half: float = 0.0) -> str:
    """A share and the half-width of its interval, in percent."""
    return f"{100 * mean:.0f} ± {100 * half:.0f} %" if half > 0 else f"{100 * mean:.0f} %"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, classes: str = "") -> str:
    """A table in a box of its own that scrolls sideways. Cells are HTML; a row's first cell is its header."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{classes}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def missing(sentence: str) -> str:
    """A section's line about what is not there."""
    return f'<p class="missing">{sentence}</p>'


def note(sentence: str) -> str:
    return f'<p class="note">{sentence}</p>' if sentence else ""


def section(key: str, title: str, lede: str, body: str, absent: str = "") -> str:
    """A section of the page; without a body the line `absent` alone."""
    lede, body = (lede, body) if body else ("", missing(absent))
    lead = f'<p class="lede">{lede}</p>' if lede else ""
    return f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{title}</h2>{lead}{body}</section>'
