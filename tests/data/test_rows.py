"""Every usual form of a row gives the same pair; bad rows are named or counted."""

import pytest

from rto_fast.data.parse import Message
from rto_fast.data.rows import Demonstration, Pair, Prompt, detect_kind, to_demonstrations, to_pairs, to_prompts

HISTORY = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
PAIR = Pair(HISTORY, "Because.", "No.")
TURNS = [{"role": m.role, "content": m.content} for m in HISTORY]
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def answer(text):
    return {"role": "assistant", "content": text}


SAME_PAIR = {
    "hh": {"chosen": DIALOGUE + " Because.", "rejected": DIALOGUE + " No."},
    "messages and strings": {"prompt": TURNS, "chosen": "Because.", "rejected": "No."},
    "dialogue prompt": {"prompt": DIALOGUE, "chosen": "Because.", "rejected": "No."},
    "dialogue prompt, whole": {"prompt": DIALOGUE, "chosen": DIALOGUE + " Because.", "rejected": DIALOGUE + " No."},
    "conversational": {"prompt": TURNS, "chosen": [answer("Because.")], "rejected": [answer("No.")]},
    "conversational, implicit": {"chosen": [*TURNS, answer("Because.")], "rejected": [*TURNS, answer("No.")]},
    "ultrafeedback": {"prompt": "Why?", "chosen": [*TURNS, answer("Because.")], "rejected": [*TURNS, answer("No.")]},
    "sharegpt": {
        "prompt": [{"from": {"user": "human"}.get(m.role, "gpt"), "value": m.content} for m in HISTORY],
        "chosen": "Because.",
        "rejected": "No.",
    },
    "parts": {
        "prompt": [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in HISTORY],
        "chosen": "Because.",
        "rejected": "No.",
    },
}


@pytest.mark.parametrize("form", SAME_PAIR)
def test_every_form_gives_the_same_pair(form):
    row = SAME_PAIR[form]
    got = to_pairs([row, row])
    assert got.items == [PAIR, PAIR]
    assert got.rows == [0, 1] and got.dropped == {} and got.form
    assert detect_kind(row) == "pairs"
    assert to_demonstrations([row]).items == [Demonstration(HISTORY, "Because.")]
    if form != "ultrafeedback":
        assert to_prompts([row]).items == [Prompt(HISTORY)]


def test_string_prompts_are_questions_and_common_beginnings_are_text():
    rows = [{"prompt": "Why?", "chosen": " Because.", "rejected": "No."}]
    assert to_pairs(rows).items == [Pair((Message("user", "Why?"),), " Because.", "No.")]
    rows = [{"chosen": "The sky is blue and big", "rejected": "The sky is black"}]
    assert to_pairs(rows).items == [Pair((Message("text", "The sky is"),), " blue and big", " black")]


def test_the_last_turn_is_the_response():
    chosen = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d: e\n\nf "
    rejected = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: g"
    pair = to_pairs([{"chosen": chosen, "rejected": rejected}]).items[0]
    assert pair == Pair((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "d: e\n\nf", "g")


def test_columns_can_be_named():
    rows = [{"question": "1 + 1?", "answer": "2", "final": "2"}]
    columns = {"prompt": "question", "completion": "answer"}
    assert detect_kind(rows[0], columns) == "demonstrations"
    asked = (Message("user", "1 + 1?"),)
    assert to_demonstrations(rows, columns=columns).items == [Demonstration(asked, "2")]
    assert to_prompts(rows, columns={"prompt": "question"}).items == [Prompt(asked)]
    with pytest.raises(ValueError, match=r"data.columns: unknown column 'promt'; the names are prompt, chosen"):
        to_prompts(rows, columns={"promt": "question"})
    with pytest.raises(ValueError, match="data.columns: prompt=query, but row 1 has no .*found 'question', 'answer'"):
        to_prompts(rows, columns={"prompt": "query"})


def test_demonstrations_and_prompts():
    assert to_demonstrations([{"messages": [*TURNS, answer("Because.")]}]).items == [Demonstration(HISTORY, "Because.")]
    assert to_demonstrations([{"prompt": TURNS, "completion": [answer("x")]}]).items == [Demonstration(HISTORY, "x")]
    assert to_demonstrations([{"prompt": TURNS, "chosen": "x"}]).items == [Demonstration(HISTORY, "x")]
    both = {"prompt": TURNS, "chosen": "x", "rejected": "y"}
    assert to_demonstrations([both]).items == [Demonstration(HISTORY, "x")]
    assert to_demonstrations([{"text": "Once."}]).items == [Demonstration((), "Once.")]
    assert to_prompts([{"messages": [*TURNS, answer("Because.")]}]).items == [Prompt(HISTORY)]
    assert to_prompts([{"messages": TURNS}]).items == [Prompt(HISTORY)]
    assert [
        detect_kind(r) for r in ({"text": ""}, {"prompt": ""}, {"messages": []}, {"prompt": "", "completion": ""})
    ] == [
        "demonstrations",
        "prompts",
        "demonstrations",
        "demonstrations",
    ]


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, r"row 2: no column 'rejected'; found 'prompt', 'chosen'; name yours"),
        ({"chosen": "a", "rejected": 3, "prompt": "q"}, r"row 2: column 'rejected' must be a string"),
        ({"chosen": "a", "rejected": ["b"], "prompt": "q"}, r"row 2: column 'rejected' must be a str like 'chosen'"),
        ({**GOOD, "prompt": 7}, r"row 2: column 'prompt': wanted a string or a list of messages, got int"),
        ({**GOOD, "prompt": ["x"]}, r"row 2: column 'prompt': wanted messages \{role, content\}, got str"),
        ({**GOOD, "prompt": [{"content": "x"}]}, r"row 2: column 'prompt': a message has no role"),
        ({**GOOD, "prompt": [{"role": "user", "content": 5}]}, r"content must be a string, got int"),
        ({**GOOD, "prompt": [{"role": "user", "content": [{"image": 1}]}]}, r"something else than text"),
    ],
)
def test_a_wrong_schema_is_an_error_at_its_row(row, message):
    with pytest.raises(ValueError, match=message) as error:
        to_pairs([GOOD, row])
    assert "\n" not in str(error.value)


BAD = {
    "empty response": [
        {**GOOD, "chosen": " \n"},
        {**GOOD, "rejected": None},
        {"chosen": DIALOGUE, "rejected": DIALOGUE + " a"},
        {"chosen": "", "rejected": "x"},
    ],
    "chosen equals rejected": [
        {**GOOD, "rejected": "a "},
        {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " a"},
        {"chosen": "a b", "rejected": "a b"},
    ],
    "empty prompt": [
        {**GOOD, "prompt": ""},
        {**GOOD, "prompt": []},
        {**GOOD, "prompt": [{"role": "user", "content": None}]},
        {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman:\n\nAssistant: b"},
        {"chosen": [answer("a")], "rejected": [answer("b")]},
    ],
    "histories differ": [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        {"chosen": [*TURNS, answer("a")], "rejected": [*TURNS[:1], answer("b")]},
    ],
    "no shared prompt": [{"chosen": "yes", "rejected": "no"}, {"chosen": " a", "rejected": " b"}],
    "last turn is not the assistant's": [
        {"chosen": DIALOGUE + " a\n\nHuman: x", "rejected": DIALOGUE + " b"},
        {"chosen": TURNS, "rejected": TURNS},
    ],
    "response is not one assistant turn": [{"prompt": "q", "chosen": [answer("a")] * 2, "rejected": [answer("b")]}],
    "not Unicode text": [{**GOOD, "chosen": "\ud800"}, {**GOOD, "prompt": "\udc00"}],
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_content_is_dropped_and_counted(reason):
    got = to_pairs([GOOD, *BAD[reason], GOOD])
    assert got.dropped == {reason: len(BAD[reason])}
    assert got.rows == [0, len(BAD[reason]) + 1]
    with pytest.raises(ValueError, match=rf"none of the {len(BAD[reason])} rows can be used: .* x {reason} \(row 1: "):
        to_pairs(BAD[reason])
    with pytest.raises(ValueError, match=f"data row 2: {reason}"):
        to_pairs([GOOD, *BAD[reason]], strict=True)


def test_an_error_names_the_field():
    with pytest.raises(ValueError, match="1 x empty response .row 1: column 'rejected' is blank"):
        to_pairs([{**GOOD, "rejected": ""}])
    with pytest.raises(ValueError, match="no rows"):
        to_pairs([])
    with pytest.raises(ValueError, match="none of the columns prompt, chosen.*found 'title'"):
        detect_kind({"title": "x"})
