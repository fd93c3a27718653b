"""Token rewards as heat maps: which words of an answer a DPO model credits and which it blames.

A token's colour is its reward over a scale, from -1 (blamed: red) to +1 (credited: blue); its number is on hover and
focus. Texts come from data and models, so they are escaped, control characters are made visible and lengths bounded.
"""

import html as escaping
import json
import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

MAX_TOKENS, MAX_TOKEN, MAX_PROMPT, MAX_TITLE = 1024, 64, 2000, 200
"""Tokens shown of an answer, and characters shown of a token, a prompt and a title."""

_RED, _BLUE = (214, 69, 48), (46, 117, 201)
_RED_256, _BLUE_256 = (231, 224, 217, 210, 203, 167), (231, 189, 153, 111, 75, 69)
_OFF, _BOLD, _DIM, _UNDERLINED = "\033[0m", "\033[1m", "\033[2m", "\033[4m"


@dataclass(frozen=True)
class Heatmap:
    """One answer and the reward of each of its tokens. ValueError when the lists do not pair up or are not numbers."""

    title: str
    prompt: str
    tokens: list[str]
    """Texts that read as the answer when they are put together: a token brings its own whitespace. Tokens that make one
    character together are one text."""
    rewards: list[float]
    """One per text, e.g. beta log pi_dpo/pi_ref"""
    signs: list[int] | None = None
    """+1 right, -1 wrong, 0 neither, where the truth is known"""

    def __post_init__(self) -> None:
        texts = [self.title, self.prompt, *self.tokens]
        if not all(isinstance(x, str) for x in texts):
            raise ValueError("Heatmap: title, prompt and tokens must be strings")
        if len(self.tokens) != len(self.rewards):
            raise ValueError(
                f"Heatmap: rewards must be one per token, got {len(self.rewards)} for {len(self.tokens)} tokens"
            )
        if not all(_is_number(x) for x in self.rewards):
            raise ValueError("Heatmap: rewards must be finite numbers below 1e30")
        if self.signs is not None and (
            len(self.signs) != len(self.tokens) or not all(type(s) is int and -1 <= s <= 1 for s in self.signs)
        ):
            raise ValueError("Heatmap: signs must be None, or one of -1, 0, 1 per token")


def _is_number(x: Any) -> bool:
    # a comparison also holds for integers that no float can hold; it is false for nan
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30


def scale_of(heatmaps: Sequence[Heatmap]) -> float:
    """The |reward| of full colour: the 95 % quantile over all tokens, so that one outlier does not pale the others."""
    sizes = sorted(abs(r) for h in heatmaps for r in h.rewards)
    return (sizes[math.ceil(0.95 * (len(sizes) - 1))] or sizes[-1] or 1.0) if sizes else 1.0


def to_json(heatmaps: Sequence[Heatmap]) -> str:
    """The text of heatmaps.json: a list of {title, prompt, tokens, rewards, signs}."""
    return json.dumps([asdict(h) for h in heatmaps], allow_nan=False) + "\n"


def from_json(text: str) -> list[Heatmap]:
    """What `to_json` wrote. ValueError, one line, for anything else."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"heatmaps: not valid JSON: {error}") from None
    names = ("title", "prompt", "tokens", "rewards", "signs")
    if not isinstance(rows, list):
        raise ValueError(f"heatmaps: must be a list of maps, got {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or {*row, "signs"} != set(names):
            raise ValueError(f"heatmaps: map {i + 1} must be an object of {', '.join(names)}")
        lists = [row["tokens"], row["rewards"], row.get("signs") or []]
        if not all(isinstance(x, list) for x in lists):
            raise ValueError(f"heatmaps: map {i + 1}: tokens and rewards must be lists, and signs a list or null")
    return [Heatmap(**row) for row in rows]


def visible(text: str, limit: int) -> str:
    """The text with everything unprintable (controls, escapes, direction marks) spelled out, at most `limit` long."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def _lines(prompt: str) -> list[str]:
    """A prompt's lines that are not blank, made visible; of a long one the beginning and the end."""
    if len(prompt) > MAX_PROMPT:
        prompt = f"{prompt[: MAX_PROMPT // 2]} … {prompt[3 - MAX_PROMPT // 2 :]}"
    return [visible(line.strip(), MAX_PROMPT) for line in prompt.split("\n") if line.strip()]


def terminal(heatmap: Heatmap, width: int = 100, *, scale: float | None = None, colour: bool | None = None) -> str:
    """The map as lines of at most `width` columns, for people.

    In colour each token lies on its reward's colour, known wrong ones underlined; without colour every token has its
    number, and its sign where known (x wrong, o right), below it. The sum and the three lowest tokens come last.
    `colour=None`: in colour when stdout is a terminal and NO_COLOR is not set; 24 bits where COLORTERM says so, else
    256 colours. `scale`: see `scale_of`.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    scale, width = scale or scale_of([heatmap]), max(width, 24)
    title = _folded(visible(heatmap.title, MAX_TITLE), width)
    prompt = [f"  {part}" for line in _lines(heatmap.prompt) for part in _folded(line, width - 2)]
    if colour:
        title, prompt = [f"{_BOLD}{x}{_OFF}" for x in title], [f"{_DIM}{x}{_OFF}" for x in prompt]
    body = _coloured(heatmap, width - 2, scale) if colour else _numbered(heatmap, width - 2)
    lowest = sorted(_shown(heatmap), key=lambda shown: heatmap.rewards[shown[0]])[:3]
    worst = ", ".join(f"{text} {heatmap.rewards[i]:+.3f}" for i, _, text in lowest)
    body += _folded(f"sum {math.fsum(heatmap.rewards):+.3f}" + (f", lowest {worst}" if worst else ""), width - 2)
    return "\n".join([*title, *prompt, *(f"  {line}" for line in body)])


def _coloured(heatmap: Heatmap, width: int, scale: float) -> list[str]:
    lines, line, used = [], "", 0
    shown = _shown(heatmap)
    starts = [k for k, (_, space, text) in enumerate(shown) if k == 0 or space or text == "␣"]
    for start, end in pairwise([*starts, len(shown)]):
        # a word of several tokens stays on one line where it can
        room = len(shown[start][1]) + sum(_columns(text) for _, _, text in shown[start:end])
        for k, (i, space, text) in enumerate(shown[start:end]):
            size = _columns(text)
            if used and used + (len(space) + size if k else room) > width:
                lines, line, used, space = [*lines, line], "", 0, ""
            wrong = heatmap.signs is not None and heatmap.signs[i] < 0
            mark = _UNDERLINED if wrong else ""
            line += (
                (_paint(space, 0.0) + _OFF if space else "") + _paint(mark + text, heatmap.rewards[i] / scale) + _OFF
            )
            used += len(space) + size
            if heatmap.tokens[i].endswith("\n"):
                lines, line, used = [*lines, line], "", 0
    return [*lines, *([line] if line else []), *_left_out(heatmap)]


def _paint(text: str, v: float) -> str:
    """Black or white ink on paper that is white at v = 0, so that weak rewards look weak on a dark terminal too."""
    strength = min(abs(v), 1.0)
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        full = _RED if v < 0 else _BLUE
        red, green, blue = (round(255 + (c - 255) * strength) for c in full)
        ink = 231 if strength > 0.75 else 16
        return f"\033[48;2;{red};{green};{blue}m\033[38;5;{ink}m{text}"
    steps = _RED_256 if v < 0 else _BLUE_256
    return f"\033[48;5;{steps[round(strength * (len(steps) - 1))]}m\033[38;5;16m{text}"


def _numbered(heatmap: Heatmap, width: int) -> list[str]:
    lines: list[str] = []
    rows, used, shown = ["", "", ""], 0, _shown(heatmap)
    # columns part all tokens, so where words have several of them a word's beginning is marked
    sub_words = any(not b and s[-1].isalnum() and t[0].isalnum() for (_, _, s), (_, b, t) in pairwise(shown))
    for i, space, text in shown:
        text = "▁" + text if space and sub_words else text
        number = f"{heatmap.rewards[i]:+.3f}"
        mark = "" if heatmap.signs is None else {-1: "x", 0: "", 1: "o"}[heatmap.signs[i]]
        size = max(_columns(text), len(number))
        if used and used + size > width:
            lines, rows, used = [*lines, *(r.rstrip() for r in rows if r.strip())], ["", "", ""], 0
        rows = [
            r + x + " " * (size - _columns(x) + 1) for r, x in zip(rows, (text, number, mark.center(6)), strict=True)
        ]
        used += size + 1
    return [*lines, *(r.rstrip() for r in rows if r.strip()), *_left_out(heatmap)]


def _shown(heatmap: Heatmap) -> list[tuple[int, str, str]]:
    """(number, space before it, text) of the tokens to show."""
    out, gap = [], False
    for i, token in enumerate(heatmap.tokens[:MAX_TOKENS]):
        body = token.strip(" ")
        # a token that is nothing but whitespace has a reward too, so it must be seen
        text = visible(body.replace("\n", "↵"), MAX_TOKEN) or "␣"
        out.append((i, " " if i and body and (gap or token.startswith(" ")) else "", text))
        gap = bool(body) and token.endswith(" ")
    return out


def _left_out(heatmap: Heatmap) -> list[str]:
    more = len(heatmap.tokens) - MAX_TOKENS
    return [f"... {more} more tokens"] if more > 0 else []


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _folded(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces where there are some."""
    lines = [""] if text else []
    for c in text:
        if _columns(lines[-1] + c) > width:
            head, space, tail = lines[-1].rpartition(" ")
            lines[-1:] = [head, tail] if space and head.strip() and c != " " else [lines[-1], ""]
        lines[-1] += "" if c == " " and not lines[-1] and len(lines) > 1 else c
    return lines


def html(heatmap: Heatmap, *, scale: float | None = None) -> str:
    """The map as an escaped fragment for any page that has `CSS` (or rules of its own for the same classes).

    <figure class="hm"> with one <span class="hm-token" style="--v:..."> per token, --v in [-1, 1]; hm-wrong and
    hm-right where the truth is known. The number is in title, in aria-label, and on focus in a bubble (data-r). Only
    the whitespace of the text itself separates the tokens, so that sub-words read as words. `scale`: see `scale_of`.
    """
    scale = scale or scale_of([heatmap])
    parts = []
    for i, space, text in _shown(heatmap):
        number, known = f"{heatmap.rewards[i]:+.3f}", ""
        if heatmap.signs is not None and heatmap.signs[i]:
            known = "wrong" if heatmap.signs[i] < 0 else "right"
        v = max(-1.0, min(1.0, heatmap.rewards[i] / scale))
        said = _escape(f"{text}: {number}" + (f", known to be {known}" if known else ""))
        parts.append(
            f'{space}<span class="hm-token{known and f" hm-{known}"}" style="--v:{v:.3f}" tabindex="0" role="img" '
            f'title="{said}" aria-label="{said}" data-r="{number}">{_escape(text)}</span>'
            # a line may break behind spaces that are drawn
            + ("<br>" if heatmap.tokens[i].endswith("\n") else "<wbr>" if text == "␣" else "")
        )
    parts += [f' <span class="hm-more">{line}</span>' for line in _left_out(heatmap)]
    title, prompt = _escape(visible(heatmap.title, MAX_TITLE)), "<br>".join(map(_escape, _lines(heatmap.prompt)))
    total = math.fsum(heatmap.rewards)
    return (
        f'<figure class="hm"><figcaption><b>{title}</b> <span class="hm-sum">sum {total:+.3f}</span>'
        f'<span class="hm-prompt">{prompt}</span></figcaption><p class="hm-text">{"".join(parts)}</p></figure>'
    )


def _escape(text: str) -> str:
    return escaping.escape(text, quote=True)


CSS = """
.hm{--hm-plus:46 117 201;--hm-minus:214 69 48;margin:0 0 1.5rem}
.hm figcaption{margin-bottom:.35rem}
.hm-sum{float:right;opacity:.7;font-variant-numeric:tabular-nums}
.hm-prompt{display:block;opacity:.75;overflow-wrap:anywhere}
.hm-text{margin:0;line-height:2.1;overflow-wrap:anywhere}
.hm-token{position:relative;unicode-bidi:isolate;padding:.15em 0;border-radius:.15em;
background:linear-gradient(rgb(var(--hm-plus)/calc(max(var(--v),0)*.75)) 0 0),
linear-gradient(rgb(var(--hm-minus)/calc(max(0 - var(--v),0)*.75)) 0 0)}
.hm-wrong{text-decoration:underline wavy 1px;text-underline-offset:.3em}
.hm-token:hover,.hm-token:focus{outline:1px solid currentColor;z-index:1}
.hm-token:hover::after,.hm-token:focus::after{content:attr(data-r);position:absolute;left:50%;bottom:100%;
transform:translateX(-50%);padding:0 .4em;border-radius:.25em;background:#222;color:#fff;line-height:1.6;
font-size:.8rem;white-space:nowrap;font-variant-numeric:tabular-nums;pointer-events:none}
.hm-more{opacity:.7}
"""
"""Rules of a heat map; a page needs them once."""

_PAGE_CSS = """
:root{color-scheme:light dark}
body{font:1rem/1.5 system-ui,sans-serif;max-width:52rem;margin:0 auto;padding:1rem 1.5rem;overflow-x:hidden;
background:light-dark(#fff,#16181c);color:light-dark(#1b1b1b,#e6e6e6)}
h1{font-size:1.4rem}
.hm-legend{display:inline-block;width:8rem;height:.8rem;vertical-align:middle;border-radius:.2rem;
background:linear-gradient(90deg,rgb(214 69 48/.75),transparent,rgb(46 117 201/.75))}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.1rem .6rem .1rem 0;text-align:left}
"""


def page(heatmaps: Sequence[Heatmap], *, title: str = "Token rewards", before: str = "") -> str:
    """A self-contained page (no script, no network) of all maps on one scale; `before` is HTML of the caller's own."""
    scale, name = scale_of(heatmaps), _escape(visible(title, MAX_TITLE))
    legend = (
        f'<p>{-scale:+.3f} <span class="hm-legend" role="img" aria-label="colour scale from blamed to credited"></span>'
        f" {scale:+.3f} per token. Hover, tap or tab to a token for its number; known wrong tokens are underlined.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{_PAGE_CSS}{CSS}</style></head><body><h1>{name}</h1>\n{before}\n"
        + (legend if heatmaps else "")
        + "\n".join(["", *(html(h, scale=scale) for h in heatmaps), "</body></html>\n"])
    )
