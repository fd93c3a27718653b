"""A chart of points and paths in a plane, drawn like those of chart.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from rto_fast.report.chart import HEIGHT, Line, axis, dots, frame, path, places
from rto_fast.report.html import figure, num

WIDTH = 230
"""Pixels of the plot on the narrowest phone; labels are kept apart there."""
LETTER = 7
PLACES = ((8, 0), (0, -14), (0, 14), (-8, 0), (8, -14), (8, 14), (-8, -14), (-8, 14))
"""Where a label may stand around its point, in pixels, best first; a negative x puts its end there."""
Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""


@dataclass(frozen=True)
class Point:
    """A labelled point with half-widths of its intervals. `label` is HTML."""

    label: str
    x: float
    y: float
    colour: str
    half_x: float = 0.0
    half_y: float = 0.0
    hollow: bool = False


def plane(
    title: str, unit: str, x_name: str, y_name: str, points: Sequence[Point], paths: Sequence[Line] = (), note: str = ""
) -> str:
    """Points with their intervals over paths. Every path begins where training began and ends at its dot."""
    xs = axis([v for p in points for v in (p.x - p.half_x, p.x + p.half_x)] + [v for s in paths for v in s.x], count=4)
    ys = axis([v for p in points for v in (p.y - p.half_y, p.y + p.half_y)] + [v for s in paths for v in s.y], count=6)
    place = lambda x, y: (xs.place(x), round(1000 - ys.place(y), 1))  # noqa: E731
    marks = ""
    for s in paths:
        way = places(s.x, s.y, xs, ys)
        marks += path(s, way, "line thin") + dots(s, way)
    for p in points:
        x0, y0 = place(p.x - p.half_x, p.y - p.half_y)
        x1, y1 = place(p.x + p.half_x, p.y + p.half_y)
        x, y = place(p.x, p.y)
        marks += f'<path class="whisker c-{p.colour}" d="M{x0:g} {y:g}H{x1:g}M{x:g} {y0:g}V{y1:g}"/>'
        marks += f'<path class="point c-{p.colour}" d="M{x:g} {y:g}h0"/>'
        marks += f'<path class="hole" d="M{x:g} {y:g}h0"/>' if p.hollow else ""
    batches = [(s.label, x, y) for s in paths for x, y in zip(s.x, s.y, strict=True)]
    labelled = [(p.label, p.colour, *place(p.x, p.y)) for p in points]
    labelled += [(s.label, s.colour, *place(s.x[-1], s.y[-1])) for s in paths]
    rows = "".join(_row(p.label, place(p.x, p.y), figure(p.x, p.half_x), figure(p.y, p.half_y)) for p in points)
    rows += "".join(_row(label, place(x, y), num(x), num(y)) for label, x, y in batches)
    over = labels(labelled, [place(x, y) for _, x, y in batches])
    return frame(title, unit, x_name, xs, ys, marks, rows, note=note, over=over, kind=" plane", y_name=y_name)


def _row(label: str, place: tuple[float, float], x: str, y: str) -> str:
    return f'<tr data-x="{place[0]:g}" data-y="{place[1]:g}"><th scope="row">{label}</th><td>{x}</td><td>{y}</td></tr>'


def labels(wanted: Sequence[tuple[str, str, float, float]], others: Sequence[tuple[float, float]]) -> str:
    """A label beside each (label, colour, x, y), where it is the farthest from covering a point or another label."""
    taken = [(x * WIDTH / 1000 - 6, y * HEIGHT / 1000 - 6, 12.0, 12.0) for _, _, x, y in wanted]
    taken += [(x * WIDTH / 1000 - 2, y * HEIGHT / 1000 - 2, 4.0, 4.0) for x, y in others]
    out = ""
    for label, colour, x, y in wanted:
        boxes = [(_box(label, x, y, place), place) for place in PLACES]
        box, (dx, dy) = min(boxes, key=lambda b: _cost(b[0], taken))
        taken.append(box)
        side = "r" if dx > 0 else "l" if dx < 0 else "m"
        out += (
            f'<span class="tag {side} c-{colour}" aria-hidden="true" style="left:{x / 10:g}%;top:calc({y / 10:g}% + '
            f'{dy}px)">{label}</span>'
        )
    return out


def _box(label: str, x: float, y: float, place: tuple[int, int]) -> Box:
    """What a label covers, in pixels, when it is moved from (x, y) to a place beside it."""
    (dx, dy), size, at_x = place, LETTER * len(label), x * WIDTH / 1000
    left = at_x + dx if dx > 0 else at_x + dx - size if dx < 0 else at_x - size / 2
    return left, y * HEIGHT / 1000 + dy - 7, size, 14.0


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """What the box covers of others; being outside counts 30 times."""
    left, top, wide, high = box
    outside = max(0.0, -left) + max(0.0, left + wide - WIDTH) + max(0.0, -top) + max(0.0, top + high - HEIGHT)
    return 30 * outside + sum(_shared(left, wide, x, w) * _shared(top, high, y, h) for x, y, w, h in taken)


def _shared(a: float, size: float, b: float, length: float) -> float:
    return max(min(a + size, b + length) - max(a, b), 0.0)
