"""Charts of lines, bands and stacked shares: an SVG that stretches with the page under labels that do not.

The SVG's coordinates are 1000 x 1000 and its strokes do not scale, so text keeps its size on a phone. Every chart holds
its numbers as a table; page.js reads positions from there to show values under the pointer or the arrow keys.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rto_fast.report.html import num

HEIGHT = 240
"""Pixels of the plot; only the width changes with the page."""
LABEL = 16
"""Pixels between two labels."""


@dataclass(frozen=True)
class Line:
    """One line with its band. `label` is HTML; `colour` the number of a palette colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dash: str = ""


@dataclass(frozen=True)
class Gap:
    """A level stretch between two places, with a label (HTML) on it, and what it shows in words."""

    start: float
    end: float
    y: float
    label: str
    saved: str


@dataclass
class Axis:
    """A range with round ticks; `place` maps a value to 0..1000."""

    low: float
    high: float
    ticks: list[float]
    percent: bool = False

    def place(self, value: float) -> float:
        return round(1000 * (value - self.low) / (self.high - self.low), 1)


def axis(values: Sequence[float], *, count: int, zero: bool = False, pad: float = 0.06) -> Axis:
    """An axis over all values, a little wider than they are; `zero` keeps 0 in it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        half = abs(high) / 2 or 0.5
        low, high = low - half, high + half
    margin = pad * (high - low)
    low, high = low - margin * (low != 0 or not zero), high + margin
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = scale * next(s for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    ticks = [(first + i) * step for i in range(count + 2)]
    return Axis(low, high, [0.0 if abs(t) < step * 1e-6 else t for t in ticks if t <= high + 1e-9 * step])


def lines(
    title: str,
    unit: str,
    x_name: str,
    series: Sequence[Line],
    *,
    zero: bool = False,
    note: str = "",
    gap: Gap | None = None,
    large: bool = False,
) -> str:
    """A chart of lines. Title, unit, names and labels are HTML."""
    xs = axis([v for s in series for v in s.x], count=4, pad=0.0)
    ys = axis([v for s in series for v in (*s.y, *s.low, *s.high)], count=6, zero=zero)
    marks = "".join(_band(s, xs, ys) for s in series if len(s.low)) + "".join(_stroke(s, xs, ys) for s in series)
    ends = [1000 - ys.place(s.y[-1]) for s in series]
    tag = ""
    if gap is not None:
        x0, x1, y = xs.place(gap.start), xs.place(gap.end), round(1000 - ys.place(gap.y), 1)
        marks += f'<path class="gap" d="M{x0:g} {y:g}H{x1:g}"/><path class="gapend" d="M{x0:g} {y:g}h0"/>'
        tag = f'<span class="gaptag" style="left:{(x0 + x1) / 20:g}%;top:{y / 10:g}%">{gap.label}</span>'
    rows = _rows(xs, series, [[_value(s, i) for i in range(len(s.x))] for s in series])
    return frame(title, unit, x_name, xs, ys, marks, rows, series, ends, note, tag, " large" if large else "")


def stack(title: str, unit: str, x_name: str, series: Sequence[Line]) -> str:
    """Shares of a whole over x, one on top of the other; every line needs the same x."""
    xs = axis(series[0].x, count=4, pad=0.0)
    ys = Axis(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0], percent=True)
    below = [0.0] * len(series[0].x)
    marks, ends = "", []
    for s in series:
        above = [b + y for b, y in zip(below, s.y, strict=True)]
        marks += _band(Line(s.label, s.x, s.y, s.colour, below, above), xs, ys, "share")
        ends.append(1000 - ys.place((below[-1] + above[-1]) / 2))
        below = above
    rows = _rows(xs, series, [[f"{100 * y:.0f} %" for y in s.y] for s in series])
    return frame(title, unit, x_name, xs, ys, marks, rows, series, ends, kind=" low")


def frame(
    title: str,
    unit: str,
    x_name: str,
    xs: Axis,
    ys: Axis,
    marks: str,
    rows: str,
    series: Sequence[Line] = (),
    ends: Sequence[float] = (),
    note: str = "",
    over: str = "",
    kind: str = "",
    y_name: str = "",
) -> str:
    """A figure: axes, marks (SVG), what lies over them (HTML), and a table of the numbers.

    Its columns are x and the lines of `series`, whose labels stand beside their `ends`; or a point's label, x and y.
    """
    height = max({" large": 340, " low": 130}.get(kind, HEIGHT), LABEL * (len(ends) + 1))
    head = ["", x_name, y_name] if y_name else [x_name]
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    columns += "".join(f'<th scope="col" class="c-{s.colour}">{s.label}</th>' for s in series)
    name_x, name_y = tick_label(xs), tick_label(ys)
    grid = "".join(f'<path class="grid" d="M0 {1000 - ys.place(t):g}H1000"/>' for t in ys.ticks)
    left = "".join(f'<span style="top:{(1000 - ys.place(t)) / 10:g}%">{name_y(t)}</span>' for t in ys.ticks)
    bottom = "".join(f'<span style="left:{xs.place(t) / 10:g}%">{name_x(t)}</span>' for t in xs.ticks)
    return (
        f'<figure class="chart{kind}"><figcaption><b>{title}</b> <span class="unit">{unit}</span></figcaption>'
        f'<div class="plot" style="--h:{height}px" tabindex="0" role="group" aria-label="Chart: {title}. '
        f'Arrow keys read the values; the table below holds them all.">'
        f'<div class="ylab" aria-hidden="true">{left}</div>'
        f'<div class="area"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{marks}</svg>{over}</div>"
        f'{_end_labels(series, ends, height)}<div class="xlab" aria-hidden="true">{bottom}<em>{x_name}</em></div></div>'
        + (f'<p class="note">{note}</p>' if note else "")
        + f'<details class="data"><summary>Numbers</summary><div class="scroll tall" tabindex="0" role="region" '
        f'aria-label="Numbers: {title}"><table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"</details></figure>"
    )


def tick_label(scale: Axis) -> Callable[[float], str]:
    """Ticks of one axis share their number of decimals; thousands are written k."""
    if scale.percent:
        return lambda t: f"{100 * t:.0f} %"
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else abs(scale.high) or 1.0
    most = max((abs(t) for t in scale.ticks), default=0.0)
    if most >= 1e7 or step < 1e-4:
        return lambda t: f"{t:.1e}".replace("-", "−")
    if most >= 10_000:
        return lambda t: f"{t / 1000:,g}k".replace("-", "−") if t else "0"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**places - round(step * 10**places)) > 1e-6:  # steps of 2.5
        places += 1
    return lambda t: f"{t:,.{places}f}".replace("-", "−")


def _end_labels(series: Sequence[Line], ends: Sequence[float], height: int) -> str:
    """Labels beside the lines' ends, moved apart, each with a leader to its line."""
    if not ends:
        return ""
    leaders = names = ""
    ordered = sorted(zip(ends, series, strict=True), key=lambda pair: pair[0])
    for (end, s), place in zip(ordered, spread_out(sorted(ends), 1000 * LABEL / height), strict=True):
        leaders += f'<path class="lead c-{s.colour}" d="M0 {end:g}L10 {place:.1f}"/>'
        names += f'<span class="c-{s.colour}" style="top:{place / 10:.2f}%">{s.label}</span>'
    return (
        '<div class="ends" aria-hidden="true"><svg viewBox="0 0 10 1000" preserveAspectRatio="none">'
        f"{leaders}</svg>{names}</div>"
    )


def spread_out(wanted: Sequence[float], gap: float, high: float = 1000.0) -> list[float]:
    """Sorted places at least `gap` apart, near the wanted ones and, where they fit, within 0..high."""
    places = [*accumulate(wanted, lambda before, place: max(place, before + gap), initial=-gap)][1:]
    if places and places[-1] > high:
        places = [*accumulate([high, *places[-2::-1]], lambda behind, place: min(place, behind - gap))][::-1]
    return places


def places(x: Sequence[float], y: Sequence[float], xs: Axis, ys: Axis) -> list[str]:
    """The points of a line as SVG writes them."""
    return [f"{xs.place(a):g} {1000 - ys.place(b):g}" for a, b in zip(x, y, strict=True)]


def path(s: Line, way: list[str], classes: str) -> str:
    dash = f' stroke-dasharray="{s.dash}"' if s.dash else ""
    return f'<path class="{classes} c-{s.colour}"{dash} d="M{"L".join(way)}"/>'


def dots(s: Line, way: list[str]) -> str:
    return f'<path class="dots c-{s.colour}" d="{"".join(f"M{at}h0" for at in way)}"/>'


def _stroke(s: Line, xs: Axis, ys: Axis) -> str:
    way = places(s.x, s.y, xs, ys)
    return path(s, way, "line") if len(way) > 1 else path(s, [f"{way[0]}h0"], "line") + dots(s, way)


def _band(s: Line, xs: Axis, ys: Axis, kind: str = "band") -> str:
    outline = places(s.x, s.high, xs, ys) + places(s.x, s.low, xs, ys)[::-1]
    return f'<path class="{kind} c-{s.colour}" d="M{"L".join(outline)}Z"/>'


def _value(s: Line, i: int) -> str:
    return num(s.y[i]) + (f" ({num(s.low[i])} to {num(s.high[i])})" if len(s.low) else "")


def _rows(xs: Axis, series: Sequence[Line], values: list[list[str]]) -> str:
    """Table rows over the union of all x, with their places on the axis for page.js."""
    known = [dict(zip(s.x, shown, strict=True)) for s, shown in zip(series, values, strict=True)]
    return "".join(
        f'<tr data-x="{xs.place(x):g}"><th scope="row">{num(x, 4) if x % 1 else f"{x:,.0f}"}</th>'
        + "".join(f"<td>{column.get(x, '')}</td>" for column in known)
        + "</tr>"
        for x in sorted({x for s in series for x in s.x})
    )
