"""Heat maps as lines for a terminal: on each token its reward's colour, or without colours its number below it."""

import math
import os
import sys
import unicodedata
from itertools import pairwise

from rto_fast.evaluate.heatmap import MAX_TITLE, Heatmap, left_out, prompt_lines, scale_of, shown_tokens, visible

_RED, _BLUE = (214, 69, 48), (46, 117, 201)
_RED_256, _BLUE_256 = (231, 224, 217, 210, 203, 167), (231, 189, 153, 111, 75, 69)
_OFF, _BOLD, _DIM, _UNDERLINED = "\033[0m", "\033[1m", "\033[2m", "\033[4m"


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
    prompt = [f"  {part}" for line in prompt_lines(heatmap.prompt) for part in _folded(line, width - 2)]
    if colour:
        title, prompt = [f"{_BOLD}{x}{_OFF}" for x in title], [f"{_DIM}{x}{_OFF}" for x in prompt]
    body = _coloured(heatmap, width - 2, scale) if colour else _numbered(heatmap, width - 2)
    lowest = sorted(shown_tokens(heatmap), key=lambda shown: heatmap.rewards[shown[0]])[:3]
    worst = ", ".join(f"{text} {heatmap.rewards[i]:+.3f}" for i, _, text in lowest)
    body += _folded(f"sum {math.fsum(heatmap.rewards):+.3f}" + (f", lowest {worst}" if worst else ""), width - 2)
    return "\n".join([*title, *prompt, *(f"  {line}" for line in body)])


def _coloured(heatmap: Heatmap, width: int, scale: float) -> list[str]:
    lines, used, shown = [""], 0, shown_tokens(heatmap)
    starts = [k for k, (_, space, text) in enumerate(shown) if k == 0 or space or text == "␣"]
    for start, end in pairwise([*starts, len(shown)]):
        # a word of several tokens stays on one line where it can
        room = len(shown[start][1]) + sum(_columns(text) for _, _, text in shown[start:end])
        for k, (i, space, text) in enumerate(shown[start:end]):
            size = _columns(text)
            if used and used + (len(space) + size if k else room) > width:
                lines, used, space = [*lines, ""], 0, ""
            mark = _UNDERLINED if heatmap.signs is not None and heatmap.signs[i] < 0 else ""
            lines[-1] += _paint(space, 0.0) + _OFF if space else ""
            lines[-1] += _paint(mark + text, heatmap.rewards[i] / scale) + _OFF
            used += len(space) + size
            if heatmap.tokens[i].endswith("\n"):
                lines, used = [*lines, ""], 0
    return [*filter(None, lines), *left_out(heatmap)]


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
    rows, used, shown = [""] * 3, 0, shown_tokens(heatmap)
    # columns part all tokens, so where words have several of them a word's beginning is marked
    sub_words = any(not b and s[-1].isalnum() and t[0].isalnum() for (_, _, s), (_, b, t) in pairwise(shown))
    for i, space, text in shown:
        text = "▁" + text if space and sub_words else text
        number = f"{heatmap.rewards[i]:+.3f}"
        mark = "" if heatmap.signs is None else {-1: "x", 0: "", 1: "o"}[heatmap.signs[i]]
        size = max(_columns(text), len(number))
        if used and used + size > width:
            rows, used = rows + [""] * 3, 0
        for row, cell in enumerate((text, number, mark.center(6)), -3):
            rows[row] += cell + " " * (size - _columns(cell) + 1)
        used += size + 1
    return [*filter(None, map(str.rstrip, rows)), *left_out(heatmap)]


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
