"""Curves as SVG, side by side on one scale; colours follow the page's light or dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from rto_fast.credit.follow import Point

_W, _H = 340, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 34
_LINES = (
    ("chosen", "chosen", "chosen"),
    ("rejected", "rejected", "rejected"),
    ("own", "own", "samples of π<sub>ref</sub>"),
    ("minus_beta_kl", "kl", "−β KL(π<sub>ref</sub> ‖ π)"),
)
"""Field of Point, CSS class, name as HTML"""

CSS = """<style>
.lk{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem;align-items:end}
.lk figure{margin:0}.lk svg{width:100%;height:auto}.lk text{font:11px system-ui,sans-serif;fill:currentColor}
.lk .grid{stroke:currentColor;opacity:.15}.lk .zero{stroke:currentColor;opacity:.6}
.lk path{fill:none;stroke-width:2}.lk path.band{stroke:none;opacity:.18}
.lk-chosen{stroke:light-dark(#1d6fc0,#6ab0f3)}.lk-rejected{stroke:light-dark(#c8402e,#f08a78)}
.lk-own{stroke:light-dark(#555,#bbb)}.lk-kl{stroke:light-dark(#111,#fff);stroke-dasharray:2 4}
.lk path.band.lk-chosen{fill:light-dark(#1d6fc0,#6ab0f3)}.lk path.band.lk-rejected{fill:light-dark(#c8402e,#f08a78)}
.lk path.band.lk-own{fill:light-dark(#555,#bbb)}.lk-key svg{width:2rem;height:.8rem;vertical-align:middle}
.lk-key span{white-space:nowrap;margin-right:1rem}
</style>"""


def panels(curves: Mapping[str, Sequence[Point]], beta: float) -> str:
    """A figure per curve, a key above them and a table of the numbers below."""
    means = [point.mean(field) for points in curves.values() for point in points for field, _, _ in _LINES]
    ends = [mean + sign * ci95 for mean, ci95 in means for sign in (-1, 1)]
    step = _tick(max(ends) - min(ends))
    low, high = math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step
    key = "".join(
        f'<span><svg viewBox="0 0 32 12"><path class="lk-{css}" d="M0 6H32"/></svg> {name}</span>'
        for _, css, name in _LINES
    )
    figures = "".join(
        f"<figure><figcaption><b>{escape(name)}</b></figcaption>{_svg(name, points, low, high, step)}</figure>"
        for name, points in curves.items()
    )
    tables = "".join(_table(name, points) for name, points in curves.items())
    about = (
        f"<p>Mean β log(π/π<sub>ref</sub>) per answer against DPO steps, β = {beta:g}, with 95 % bands; "
        "divided by β it is the change of the log-likelihood since the start. Eq. 16: the samples of π<sub>ref</sub> "
        "must follow the dotted line.</p>"
    )
    return f'{CSS}{about}<p class="lk lk-key" style="display:block">{key}</p><div class="lk">{figures}</div>{tables}'


def _tick(span: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that the span holds at most eight times."""
    sizes = (digit * 10.0**power for power in range(-9, 9) for digit in (1, 2, 5))
    return next(size for size in sizes if span <= 8 * size)


def _svg(name: str, points: Sequence[Point], low: float, high: float, step: float) -> str:
    last = points[-1].step or 1

    def x(at: float) -> float:
        return _LEFT + (_W - _LEFT - _RIGHT) * at / last

    def y(value: float) -> float:
        return _TOP + (_H - _TOP - _BOTTOM) * (high - value) / ((high - low) or 1)

    parts = [f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(name)}: rewards over steps">']
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        css = "zero" if abs(value) < step / 2 else "grid"
        parts.append(f'<line class="{css}" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:+.3g}</text>')
    for p in (points[0], points[len(points) // 2], points[-1]):
        parts.append(f'<text x="{x(p.step):.1f}" y="{_H - 16}" text-anchor="middle">{p.step}</text>')
    parts.append(f'<text x="{(_W + _LEFT) / 2:.0f}" y="{_H - 2}" text-anchor="middle">DPO steps</text>')
    for field, css, _ in _LINES:
        line = [(x(p.step), *p.mean(field)) for p in points]
        if css != "kl":
            edge = [(a, m + c) for a, m, c in line] + [(a, m - c) for a, m, c in reversed(line)]
            parts.append(f'<path class="band lk-{css}" d="{_path(edge, y)}Z"/>')
        parts.append(f'<path class="lk-{css}" d="{_path([(a, m) for a, m, _ in line], y)}"/>')
    return "".join([*parts, "</svg>"])


def _path(line: Sequence[tuple[float, float]], y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{a:.1f} {y(m):.1f}" for a, m in line)


def _table(name: str, points: Sequence[Point]) -> str:
    head = "".join(f"<th>{x}</th>" for x in ("step", *(n for _, _, n in _LINES), "accuracy"))
    rows = "".join(
        f"<tr><td>{p.step}</td>"
        + "".join("<td>{:+.3f} ± {:.3f}</td>".format(*p.mean(field)) for field, _, _ in _LINES)
        + f"<td>{p.accuracy:.2f}</td></tr>"
        for p in points
    )
    caption = f"<caption style='text-align:left'><b>{escape(name)}</b></caption>"
    return f'<div style="overflow-x:auto"><table>{caption}<tr>{head}</tr>{rows}</table></div>'
