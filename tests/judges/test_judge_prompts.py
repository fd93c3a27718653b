"""What the judge is asked, and how its verdict is read."""

import pytest

from rto_fast.data.parse import Message
from rto_fast.judges.llm.prompts import HELPFUL, TLDR, ask_about, query_text, verdict


def test_the_texts_stand_in_their_places():
    got = ask_about("helpful", "why?", "because", "no idea")
    assert "\n\nQuery: why?\n\nResponse A: because\n\nResponse B: no idea\n\nFIRST, provide" in got
    assert got.endswith('More helpful: <"A" or "B">') and "<the" not in got
    got = ask_about("tldr", "a long post", "short", "shorter")
    assert "\n\nPost: a long post\n\nSummary A: short\n\nSummary B: shorter\n\nFIRST provide" in got
    assert HELPFUL != TLDR


def test_a_text_that_spells_out_a_place_is_not_filled():
    got = ask_about("helpful", "q", "<the other response> {0} %s", "SECRET")
    assert "Response A: <the other response> {0} %s\n" in got
    assert got.count("SECRET") == 1


def test_half_a_surrogate_pair_can_be_sent():
    ask_about("helpful", "q\ud83d", "a", "b").encode()


def test_a_dialogue_is_shown_whole_and_a_question_alone():
    assert query_text([Message("user", "why?")]) == "why?"
    turns = [Message("user", "hi"), Message("assistant", " hello "), Message("user", "why?")]
    assert query_text(turns) == "Human: hi\n\nAssistant: hello\n\nHuman: why?"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Comparison: A is better.\nMore helpful: A", "A"),
        ('Comparison: B is shorter.\n\nMore helpful: "B"', "B"),
        ("**More helpful:** B.", "B"),
        ("**More helpful**: B", "B"),
        ("More helpful: Response B", "B"),
        ("more helpful: b\n", "B"),
        ("Comparison: fine. Preferred: A", "A"),
        ("Preferred: <A>", "A"),
        ("Response A is the better one.\nB", "B"),
        ("I like it.\n\n“A”\n", "A"),
        ("<think>More helpful: A?\nMore helpful: A</think>Comparison: x\nMore helpful: B", "B"),
        # nothing is guessed at
        ("", None),
        ("Once upon a time", None),
        ("A is better than B", None),
        ('More helpful: <"A" or "B">', None),
        ("More helpful: A or B", None),
        ("More helpful: both", None),
        ("More helpful: A\nMore helpful: B", None),
        ("A\nB", None),
        ("More helpful: C", None),
        ("Apple", None),
        ("<think>More helpful: A", None),
    ],
)
def test_verdicts(reply, letter):
    assert verdict(reply) == letter


def test_a_long_reply_is_read_in_no_time():
    assert verdict("* " * 200_000 + "more helpful" * 20_000) is None
