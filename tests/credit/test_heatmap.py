"""Heat maps: what is written reads back, untrusted texts stay texts, and colour is never the only channel."""

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rto_fast.credit.page import page
from rto_fast.credit.terminal import terminal
from rto_fast.evaluate.heatmap import MAX_TOKEN, MAX_TOKENS, Heatmap, from_json, scale_of, to_json, visible
from rto_fast.evaluate.heatmap_html import CSS, html

MAP = Heatmap("pair 1, rejected", "what is the colour ?", ["it", " is", " pink", " ."], [0.02, 0.0, -0.15, 0.01])
KNOWN = Heatmap("t", "p", ["it", " is", " pink"], [0.1, 0.0, -0.2], [1, 0, -1])

maps = st.lists(st.tuples(st.text(max_size=12), st.floats(-9, 9), st.integers(-1, 1)), max_size=12).flatmap(
    lambda rows: st.builds(
        Heatmap,
        st.text(max_size=30),
        st.text(max_size=30),
        st.just([r[0] for r in rows]),
        st.just([r[1] for r in rows]),
        st.sampled_from([None, [r[2] for r in rows]]),
    )
)


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.spans, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("br", "wbr", "meta"):
            self.open.append(tag)
        if tag == "span" and "hm-token" in dict(attrs).get("class", ""):
            self.spans.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.lists(maps, max_size=4))
def test_json_reads_back(heatmaps):
    assert from_json(to_json(heatmaps)) == heatmaps


@given(maps)
def test_html_holds_one_span_per_token_and_nothing_of_the_text(heatmap):
    read = Page(html(heatmap))
    assert set(read.tags) <= {"figure", "figcaption", "b", "span", "p", "br", "wbr"}
    assert len(read.spans) == len(heatmap.tokens)
    for span, reward, token in zip(read.spans, heatmap.rewards, heatmap.tokens, strict=True):
        assert f"{reward:+.3f}" in span["title"] and span["title"] == span["aria-label"]
        assert span["tabindex"] == "0"
        v = float(span["style"].removeprefix("--v:"))
        assert -1 <= v <= 1 and v * reward >= 0
        assert visible(token.strip(" ").replace("\n", "↵"), MAX_TOKEN) in span["title"]


@given(maps, st.integers(1, 200), st.booleans())
def test_terminal_lets_no_control_character_through(heatmap, width, colour):
    text = terminal(heatmap, width, colour=colour)
    plain = re.sub(r"\033\[[0-9;]*m", "", text) if colour else text
    assert all(c.isprintable() or c == "\n" for c in plain)


def test_words_of_several_tokens_stay_whole():
    read = Page(html(Heatmap("", "", ["un", "believ", "able", " story"], [0.1] * 4)))
    assert "unbelievable story" in read.text


def test_markup_in_texts_is_text():
    evil = "<script>alert(1)</script>\"' onload=x"
    read = Page(page([Heatmap(evil, evil, [evil, " <b>"], [1.0, -1.0], [0, -1])], title=evil))
    assert "script" not in read.tags and read.text.count("<script>") == 5
    assert read.spans[0]["class"] == "hm-token" and read.spans[1]["class"] == "hm-token hm-wrong"


def test_where_words_have_several_tokens_their_beginnings_are_marked():
    heatmap = Heatmap("", "", ["un", "able", " to", " ", "go", "."], [0.1] * 6)
    assert terminal(heatmap, 80, colour=False).split("\n")[0].split() == ["un", "able", "▁to", "␣", "go", "."]
    assert terminal(KNOWN, 80, colour=False).splitlines()[-4].split() == ["it", "is", "pink"]


def test_a_prompt_keeps_its_lines_and_both_its_ends():
    heatmap = Heatmap("t", "\n\nHuman: hello" + " x" * 9999 + "\n\nAssistant:", [], [])
    assert "<br>Assistant:" in html(heatmap) and "Human: hello" in html(heatmap) and len(html(heatmap)) < 3000
    assert terminal(heatmap, 80).splitlines()[1].startswith("  Human: hello x")
    assert terminal(heatmap, 80).splitlines()[-2:] == ["  Assistant:", "  sum +0.000"]


def test_page_needs_no_network_and_no_script():
    text = page([MAP, KNOWN])
    assert CSS in text and 'name="viewport"' in text
    assert not re.search(r"https?:|<script|@import|url\(", text)


def test_long_and_hostile_texts_are_bounded():
    heatmap = Heatmap("t" * 9999, "p" * 99999, ["\x1b[2J" * 999, *["x"] * 5000], [0.5] * 5001)
    for text in (html(heatmap), terminal(heatmap, 80, colour=False)):
        assert "\x1b" not in text and "\\x1b[2J" in text
        assert f"{5001 - MAX_TOKENS} more tokens" in text
        assert "p" * 2001 not in text and "t" * 201 not in text


def test_without_colour_each_token_has_its_number_and_sign():
    lines = terminal(KNOWN, 80, colour=False).splitlines()
    words, numbers, marks, summary = lines[-4:]
    assert summary == "  sum -0.100, lowest pink -0.200, is +0.000, it +0.100"
    assert words.split() == ["it", "is", "pink"] and numbers.split() == ["+0.100", "+0.000", "-0.200"]
    assert marks.split() == ["o", "x"]
    for word, number in zip(words.split(), numbers.split(), strict=True):
        assert words.index(word) == numbers.index(number)


def test_a_pipe_and_no_color_get_no_colour(monkeypatch, capsys):
    assert "\033" not in terminal(MAP, 80)  # stdout is captured here: no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\033[" in terminal(MAP, 80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in terminal(MAP, 80)


@pytest.mark.parametrize("colorterm, code", [("truecolor", "48;2;"), ("", "48;5;")])
def test_colours_follow_what_the_terminal_can(monkeypatch, colorterm, code):
    monkeypatch.setenv("COLORTERM", colorterm)
    text = terminal(KNOWN, 80, colour=True)
    assert code in text and "\033[4m" in text  # the wrong token is underlined as well


def test_words_stay_whole_where_they_fit():
    heatmap = Heatmap("", "", [" be", "fore", " un", "believ", "able", " " + "x" * 12, "y" * 12, "z" * 12], [0.1] * 8)
    text = re.sub(r"\033\[[0-9;]*m", "", terminal(heatmap, 26, colour=True))
    assert text.splitlines()[:4] == [
        "  before unbelievable",
        "  " + "x" * 12 + "y" * 12,
        "  " + "z" * 12,
        "  sum +0.800, lowest be",
    ]
    prompt = terminal(Heatmap("", "some words and averyveryverylongwordthatfitsnoline", [], []), 24).splitlines()
    assert prompt[:3] == ["  some words and", "  averyveryverylongwordt", "  hatfitsnoline"]


@pytest.mark.parametrize("width", [30, 60])
def test_lines_fit_the_width(width):
    heatmap = Heatmap("title " * 20, "prompt " * 30, [" word"] * 50 + [" 日本語"] * 20, [0.1] * 70)
    for colour in (True, False):
        text = re.sub(r"\033\[[0-9;]*m", "", terminal(heatmap, width, colour=colour))
        assert all(sum(2 if c in "日本語" else 1 for c in line) <= width for line in text.splitlines())


def test_scale_passes_over_an_outlier_and_is_never_zero():
    assert scale_of([Heatmap("", "", ["x"] * 100, [0.1] * 99 + [50.0])]) == 0.1
    assert scale_of([Heatmap("", "", ["x"] * 30, [0.0] * 29 + [0.3])]) == 0.3
    assert scale_of([]) == scale_of([Heatmap("", "", ["x"], [0.0])]) == 1.0


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("{", "not valid JSON"),
        ("{}", "a list of maps"),
        ('[{"title": "a"}]', "map 1 must be an object"),
        ("[[" * 100_000, "not valid JSON"),
        (json.dumps([{"title": "", "prompt": "", "tokens": "ab", "rewards": [1, 2], "signs": None}]), "lists"),
        (json.dumps([{"title": "", "prompt": "", "tokens": ["a"], "rewards": [], "signs": None}]), "one per token"),
        ('[{"title": "", "prompt": "", "tokens": ["a"], "rewards": [NaN], "signs": null}]', "finite"),
        (f'[{{"title": "", "prompt": "", "tokens": ["a"], "rewards": [1{"0" * 400}], "signs": null}}]', "finite"),
        (json.dumps([{"title": 3, "prompt": "", "tokens": [], "rewards": [], "signs": None}]), "strings"),
        (json.dumps([{"title": "", "prompt": "", "tokens": ["a"], "rewards": [1], "signs": [2]}]), "signs"),
    ],
)
def test_bad_files_are_named(text, wanted):
    with pytest.raises(ValueError, match=wanted) as error:
        from_json(text)
    assert "\n" not in str(error.value)
