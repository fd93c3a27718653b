"""Text of any kind becomes safe, bounded HTML; numbers are as precise as their intervals; charts have round ticks."""

import html
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rto_fast.report.chart import Line, axis, lines, spread_out, stack, tick_label
from rto_fast.report.html import MAX_TEXT, duration, figure, num, percent, span, text
from rto_fast.report.scatter import Point, plane

NUMBERS = st.one_of(st.just(0.0), st.floats(1e-30, 1e30), st.floats(-1e30, -1e-30))


@given(st.text(st.characters(codec=None)))
def test_text_is_safe_and_can_be_written(raw: str):
    out = text(raw)
    out.encode("utf-8")
    assert not set(out) & set("<>\"'")
    assert all(c.isprintable() or c in "\n\t" or ord(c) > 0x9F for c in out)


def test_text_shows_what_it_cannot_keep():
    assert text("a\x07\ud800\u202e<b>") == "a␇\ufffd\ufffd&lt;b&gt;"
    assert text("ü 😀\n\t") == "ü 😀\n\t"
    long = text("x" * (MAX_TEXT + 1234))
    assert long.endswith(" … (1,234 more characters)") and len(long) < MAX_TEXT + 40


@pytest.mark.parametrize(
    "shown, wanted",
    [
        (figure(1.8887, 0.0855), "1.89 ± 0.09"),
        (figure(-0.16, 0.0147), "−0.160 ± 0.015"),
        (figure(11.783, 0.2309), "11.78 ± 0.23"),
        (figure(1234.5, 31.0), "1,234 ± 31"),
        (figure(-0.148, 0.405), "−0.15 ± 0.41"),
        (figure(0.942, 0.0052), "0.942 ± 0.005"),
        (figure(0.5, 0.0), "0.500"),
        (span(1.36, 1.41, 0.05), "1.36 to 1.41"),
        (span(1.361, 1.362, 0.05), ""),
        (num(0.0), "0.00"),
        (num(6144.0), "6,144"),
        (num(None), "–"),
        (num(math.nan), "–"),
        (num(1e-9), "1.00e−09"),
        (percent(0.644, 0.03), "64 ± 3 %"),
        (duration(97.1), "97.1 s"),
        (duration(2100.0), "35 min"),
        (duration(7200.0), "2 h"),
    ],
)
def test_numbers(shown: str, wanted: str):
    assert shown == wanted


@given(st.lists(NUMBERS, max_size=6), st.integers(2, 8), st.booleans())
def test_an_axis_holds_its_values_with_few_round_ticks(values: list[float], count: int, zero: bool):
    found = axis(values, count=count, zero=zero)
    assert found.low < found.high and all(map(math.isfinite, (found.low, found.high)))
    assert all(-1e-6 <= found.place(v) <= 1000 + 1e-6 for v in values)
    assert len(found.ticks) <= count + 1
    assert all(isinstance(tick_label(found)(t), str) for t in found.ticks)


@given(st.lists(st.floats(0, 1000), max_size=12), st.floats(10, 80))
def test_labels_are_moved_apart(wanted: list[float], gap: float):
    places = spread_out(sorted(wanted), gap)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(places))
    assert not places or places[-1] <= 1000 or len(places) * gap > 1000


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5, unique_by=lambda p: p[0]))
def test_charts_of_any_numbers_have_finite_places(points: list[tuple[float, float]]):
    x, y = ([p[i] for p in sorted(points)] for i in (0, 1))
    line = Line("a", x, y, "rto", y, y)
    shares = Line("a", x, [0.5] * len(x), "rto")
    drawn = lines("t", "u", "x", [line]) + stack("t", "u", "x", [shares, shares])
    drawn += plane("t", "u", "x", "y", [Point("p", x[0], y[0], "rto", 0.1, 0.1, hollow=True)], [line])
    assert "nan" not in drawn and "inf" not in drawn


def test_a_chart_holds_its_numbers_as_a_table():
    drawn = lines("Title", "unit", "rollouts", [Line("rto", [1.0, 2.0], [0.5, 0.75], "rto", [0.4, 0.7], [0.6, 0.8])])
    assert '<tr data-x="0"><th scope="row">1</th><td>0.500 (0.400 to 0.600)</td></tr>' in drawn
    assert 'aria-label="Chart: Title.' in drawn and html.unescape(drawn).count("<svg") == 2
