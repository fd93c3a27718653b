"""Lengths are kept to, losses are counted, and a prompt is on one side of a split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.data import encode
from rto_fast.data.encode import encode_demonstrations, encode_pairs, encode_prompts
from rto_fast.data.held_out import split
from rto_fast.data.parse import Message
from rto_fast.data.rows import Demonstration, Pair, Prompt
from rto_fast.data.template import Template
from tests.data.tokenizers import LLAMA2, byte_level, sentencepiece_style, word_level

PLAIN = Template(byte_level())
NO_BOS = Template(byte_level(bos=None), "none")


def ask(text):
    return (Message("user", text),)


def test_pairs():
    pairs = [Pair(ask("hi"), "the", "no"), Pair(ask("x" * 50), "the", "no"), Pair(ask("hi"), "the", "n" * 99)]
    items, report = encode_pairs(pairs, PLAIN, max_length=60, max_prompt=40)
    assert [len(i.prompt) for i in items] == [len(PLAIN.prompt(ask("hi"))), 40]
    assert items[0].prompt == PLAIN.prompt(ask("hi"))
    assert items[0].chosen == PLAIN.response("the", ask("hi"))
    assert items[1].prompt == [PLAIN.bos_id, *PLAIN.prompt(ask("x" * 50))[-39:]]
    assert report.rows == 3 and report.kept == [0, 1] and report.truncated_prompts == 1
    assert report.dropped == {"response does not fit": 1}
    assert report.lengths["chosen"] == {"min": 2, "10%": 2, "50%": 2, "90%": 2, "99%": 2, "max": 2, "sum": 4}
    assert list(report.lengths) == ["prompt", "chosen", "rejected"]


def test_demonstrations_take_pairs_too():
    pairs = [Pair(ask("hi"), "the", "n" * 99)]
    demonstrations = [Demonstration(ask("hi"), "the")]
    one, two = (encode_demonstrations(x, PLAIN, max_length=60) for x in (pairs, demonstrations))
    assert one == two
    assert one[0][0].response == PLAIN.response("the", ask("hi"))
    story, _ = encode_demonstrations([Demonstration((), "the")], PLAIN, max_length=8)
    assert story[0].prompt == [PLAIN.bos_id]


def test_prompts_leave_room_for_an_answer():
    items, report = encode_prompts(
        [Prompt(ask("hi")), Pair(ask("x" * 99), "a", "b")], PLAIN, max_length=31, max_prompt=30
    )
    assert items[0] == PLAIN.prompt(ask("hi")) and len(items[1]) == 30
    assert report.truncated_prompts == 1 and list(report.lengths) == ["prompt"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.text("ab the", max_size=30)] * 3), min_size=1, max_size=6),
    max_length=st.integers(2, 70),
    data=st.data(),
)
def test_limits_hold_and_every_row_is_accounted_for(rows, max_length, data):
    max_prompt = data.draw(st.integers(1, max_length - 1))
    pairs = [Pair(ask(p), c, r) for p, c, r in rows]
    try:
        items, report = encode_pairs(pairs, PLAIN, max_length=max_length, max_prompt=max_prompt)
    except ValueError as error:
        assert "none of the" in str(error) and "\n" not in str(error)
        return
    assert len(items) == len(report.kept) and len(items) + sum(report.dropped.values()) == len(rows) == report.rows
    for item, i in zip(items, report.kept, strict=True):
        whole = PLAIN.prompt(pairs[i].prompt)
        assert item.prompt[0] == PLAIN.bos_id and len(item.prompt) == min(len(whole), max_prompt)
        assert item.prompt[1:] == whole[len(whole) - len(item.prompt) + 1 :]
        for ids, text in ((item.chosen, pairs[i].chosen), (item.rejected, pairs[i].rejected)):
            assert ids == PLAIN.response(text, pairs[i].prompt) and len(item.prompt) + len(ids) <= max_length


def test_what_is_dropped():
    words = Template(word_level(), "none")
    pairs = [
        Pair(ask("the"), "the cat", "a cat"),
        Pair(ask("the"), "the dog", "the bird"),
        Pair(ask("the"), "the <eos> cat", "a"),
        Pair(ask("the"), "<eos>", "a"),
    ]
    items, report = encode_pairs(pairs, words, max_length=16)
    assert report.kept == [0]
    assert report.dropped == {"responses equal as tokens": 1, "special token in the text": 1, "empty response": 1}
    assert report.literal_specials == 0
    _, report = encode_pairs([Pair(ask("</s> a"), "b", "c")], PLAIN, max_length=90)
    assert report.literal_specials == 1
    with pytest.raises(ValueError, match="1 x prompt has no token"):
        encode_demonstrations([Demonstration((), "a")], NO_BOS, max_length=16)
    llama2 = Template(sentencepiece_style(template=LLAMA2))
    refused = Pair((Message("assistant", "a"),), "b", "c")
    assert encode_pairs([refused, Pair(ask("a"), "b", "c")], llama2, max_length=90)[1].dropped == {
        "refused by the chat template": 1
    }
    with pytest.raises(ValueError, match="1 x refused by the chat template .*roles must alternate"):
        encode_pairs([refused], llama2, max_length=90)


def test_without_bos_a_long_prompt_keeps_its_end():
    items, _ = encode_prompts([Prompt(ask("abcdef"))], NO_BOS, max_length=4, max_prompt=3)
    assert NO_BOS.tokenizer.decode(items[0]) == "def"


def test_bad_limits():
    pairs = [Pair(ask("x" * 50), "the", "no")]
    with pytest.raises(ValueError, match=r"data.max_prompt: must be at least 1 and below max_length = 20.*got 20"):
        encode_pairs(pairs, PLAIN, max_length=20, max_prompt=20)
    with pytest.raises(ValueError, match="data.max_length: must be at least 2"):
        encode_pairs(pairs, PLAIN, max_length=1)
    with pytest.raises(ValueError, match="none of the 1 rows .*1 x response does not fit; raise data.max_length"):
        encode_pairs(pairs, PLAIN, max_length=21, max_prompt=20)
    with pytest.raises(ValueError, match="there are no rows"):
        encode_pairs([], PLAIN, max_length=21)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 9), min_size=2, max_size=40),
    seed=st.integers(0, 3),
    wanted=st.one_of(st.floats(0.05, 0.9), st.integers(1, 20)),
)
def test_a_prompt_is_on_one_side(prompts, seed, wanted):
    rows = [Pair(ask(f"{p}" + " " * (i % 2)), str(i), "") for i, p in enumerate(prompts)]
    try:
        train, held = split(rows, wanted, seed)
    except ValueError as error:
        assert len(set(prompts)) < 2 or wanted >= len(rows), error
        return
    assert train and held and sorted([*train, *held], key=rows.index) == rows

    def asked(side):
        return {r.prompt[0].content.strip() for r in side}

    assert asked(train).isdisjoint(asked(held))
    count = wanted if isinstance(wanted, int) else max(1, min(round(wanted * len(rows)), len(rows) - 1))
    assert len(held) <= count or len(asked(held)) == 1
    again = split(rows[::-1], wanted, seed)
    assert ([*reversed(again[0])], [*reversed(again[1])]) == (train, held)


def test_split_by_seed_and_of_token_ids():
    rows = [Prompt(ask(str(i))) for i in range(100)]
    assert split(rows, 0) == (rows, [])
    assert len(split(rows, 0.1)[1]) == len(split(rows, 10)[1]) == 10
    assert split(rows, 10, 1)[1] != split(rows, 10, 2)[1]
    assert len(split([[i] for i in range(10)], 3)[1]) == 3
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="data.held_out"):
            split(rows, bad)
    with pytest.raises(ValueError, match="cannot hold out 100 of 100 rows"):
        split(rows, 100)
    with pytest.raises(ValueError, match="with 1 distinct prompts"):
        split([rows[0]] * 4, 1)


def test_a_text_far_beyond_the_limit_is_not_tokenised(monkeypatch):
    monkeypatch.setattr(encode, "MAX_CHARACTERS", 2000)
    monkeypatch.setattr(encode, "MAX_CHARACTERS_PER_TOKEN", 10)
    seen: list[str] = []
    original = Template._encode
    monkeypatch.setattr(Template, "_encode", lambda self, texts, **k: seen.extend(texts) or original(self, texts, **k))
    pairs = [Pair(ask("hi"), "the", "no"), Pair(ask("hi"), "the", "n" * 2001), Pair(ask("x" * 2001), "the", "no")]
    items, report = encode_pairs([*pairs, pairs[0]], PLAIN, max_length=60)
    assert report.kept == [0, 3] and report.dropped == {"text far beyond max_length": 2} and len(items) == 2
    assert max(map(len, seen)) < 2000
    # a context that may hold it
    assert encode_pairs(pairs, PLAIN, max_length=2100)[1].kept == [0, 1, 2]
    with pytest.raises(ValueError, match="1 x text far beyond max_length; shorten its texts"):
        encode_pairs(pairs[1:2], PLAIN, max_length=60)


def test_chunks_of_few_characters_change_nothing(monkeypatch):
    pairs = [Pair(ask("hi " * i), "the " * (i % 3 + 1), "no") for i in range(9)]
    whole = encode_pairs(pairs, PLAIN, max_length=60)
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 30)
    assert encode_pairs(pairs, PLAIN, max_length=60) == whole
