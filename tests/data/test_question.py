"""Columns that are the prompt without being called so are read, or refused by name: never passed over."""

import pytest

from rto_fast.data.parse import Message
from rto_fast.data.rows import Demonstration, Pair, Prompt, detect_kind, to_demonstrations, to_pairs, to_prompts

ANSWERS = {"chosen": "Most are grey.", "rejected": "Most are brown."}
GREY, BROWN = ANSWERS.values()


def user(text: str, system: str | None = None) -> tuple[Message, ...]:
    return (*([Message("system", system)] if system else []), Message("user", text))


READ = {
    "alpaca": (
        {"instruction": "Translate.", "input": "chat"},
        user("Translate.\n\nchat"),
        "instruction + input (string)",
    ),
    "alpaca, no input": ({"instruction": "Go.", "input": ""}, user("Go."), "instruction (string)"),
    "alpaca, null input": ({"instruction": "Go.", "input": None}, user("Go."), "instruction (string)"),
    "orca": ({"system": "Be brief.", "question": "Why?"}, user("Why?", "Be brief."), "system + question (string)"),
    "orca, no system": ({"system": "", "question": "Why?"}, user("Why?"), "question (string)"),
    "distilabel": ({"system": "Be brief.", "input": "Why?"}, user("Why?", "Be brief."), "system + input (string)"),
    "open orca": (
        {"system_prompt": "Be.", "question": "Why?"},
        user("Why?", "Be."),
        "system_prompt + question (string)",
    ),
    "query": ({"query": "Why?"}, user("Why?"), "query (string)"),
    "system and prompt": ({"system": "Be.", "prompt": "Why?"}, user("Why?", "Be."), "system + prompt (string)"),
    "messages": ({"messages": [{"role": "user", "content": "Why?"}]}, user("Why?"), "messages (messages)"),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Why?"}]}, user("Why?"), "conversations (messages)"),
    "beside prompt": ({"prompt": "Why?", "question": "W"}, user("Why?"), "prompt (string) (not read: question)"),
}


@pytest.mark.parametrize("name", READ)
def test_well_known_columns_are_the_prompt_and_the_form_says_so(name):
    columns, asked, words = READ[name]
    got = to_pairs([{**columns, **ANSWERS}])
    assert got.items == [Pair(asked, GREY, BROWN)] and got.form == f"{words} + strings chosen, rejected"
    assert to_prompts([{**columns, **ANSWERS}]).items == [Prompt(asked)]
    assert to_prompts([columns]).items == [Prompt(asked)]
    if "messages" not in words:
        assert to_demonstrations([{**columns, "output": GREY}]).items == [Demonstration(asked, GREY)]
        assert detect_kind({**columns, "output": GREY}) == "demonstrations" and detect_kind(columns) == "prompts"


UNCLEAR = [
    ({"question": "Why?", "context": "Once."}, "'question' and 'context'; name it with --data.columns prompt=question"),
    ({"instruction": "Do.", "question": "Why?"}, "'instruction' and 'question'"),
    ({"question": "Why?", "input": "Once."}, "'question' and 'input'"),
    ({"context": "Once."}, "'context'; name it with --data.columns prompt=context"),
    ({"system": "Be brief."}, "'system'; name it with --data.columns prompt=YOURS"),
    ({"Prompt": "Why?"}, "'Prompt'; name it with --data.columns prompt=Prompt"),
    ({"Question": "Why?"}, "'Question'; name it with"),
]


@pytest.mark.parametrize(("columns", "words"), UNCLEAR)
def test_what_is_not_clear_is_refused_in_one_sentence(columns, words):
    with pytest.raises(
        ValueError, match=f"data row 2: cannot tell what is asked: no column 'prompt', but {words}"
    ) as said:
        to_pairs([{"question": "What?", **ANSWERS}, {**columns, **ANSWERS}])
    assert "\n" not in str(said.value)


def test_what_is_named_is_what_is_read():
    row = {"question": "Why?", "context": "Once.", "background": "Be brief.", **ANSWERS}
    got = to_pairs([row], columns={"prompt": "question"})
    assert got.items == [Pair(user("Why?"), GREY, BROWN)] and "(not read: context)" in got.form
    got = to_pairs([row], columns={"prompt": "question", "system": "background"})
    assert got.items == [Pair(user("Why?", "Be brief."), GREY, BROWN)]


def test_blank_columns_say_nothing():
    blank = {"context": " ", "history": [], "system": None, "input": ""}
    assert to_pairs([{**ANSWERS, **blank, "question": "Why?"}]).items == [Pair(user("Why?"), GREY, BROWN)]
    # a blank question is an empty prompt; what the answers share is not taken for one
    got = to_pairs([{**ANSWERS, "instruction": " ", "input": ""}, {**ANSWERS, "instruction": "Why?"}])
    assert got.dropped == {"empty prompt": 1}
    assert to_pairs([ANSWERS]).items[0].prompt == (Message("text", "Most are"),)


def test_a_system_message_is_not_doubled():
    turns = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Why?"}]
    row = {"system": "Be.", "prompt": turns, **ANSWERS}
    assert to_pairs([row]).items == [Pair(user("Why?", "Be."), GREY, BROWN)]


def test_sharegpt_conversations():
    turns = [{"from": "system", "value": "Be."}, {"from": "human", "value": "Why?"}]
    whole = [*turns, {"from": "gpt", "value": GREY}]
    assert to_demonstrations([{"conversations": whole}]).items == [Demonstration(user("Why?", "Be."), GREY)]
    assert to_prompts([{"conversations": whole}]).items == [Prompt(user("Why?", "Be."))]
    assert detect_kind({"conversations": whole}) == "demonstrations"
    answers = {"chosen": {"from": "gpt", "value": GREY}, "rejected": {"from": "gpt", "value": BROWN}}
    assert to_pairs([{"conversations": turns, **answers}]).items == [Pair(user("Why?", "Be."), GREY, BROWN)]
    with pytest.raises(ValueError, match="1 x prompt ends in the assistant's turn"):
        to_pairs([{"conversations": whole, **answers}])


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "q"}, CALL],
        [{"role": "user", "content": "q"}, CALL, {"role": "tool", "content": "7"}],
        [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "{}"},
            {"from": "observation", "value": "7"},
        ],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "function_call": {"name": "f"}}],
    ],
)
def test_rows_that_use_tools_are_dropped_and_counted(messages):
    whole = [*messages, {"role": "assistant", "content": "7"}]
    fine = {"messages": [{"role": "user", "content": "q", "tool_calls": None}, {"role": "assistant", "content": "a"}]}
    got = to_demonstrations([fine, {"messages": whole}, {**fine, "tools": [{"name": "f"}]}, {**fine, "tools": None}])
    assert got.dropped == {"tool use": 2} and got.rows == [0, 3]
    assert to_pairs([{"prompt": messages, **ANSWERS}, {"prompt": "q", **ANSWERS}]).dropped == {"tool use": 1}


def test_message_lists_that_are_written_as_text_are_no_question():
    for text in ('[{"role": "user", "content": "hi"}]', "[{'from': 'human', 'value': 'hi'}]"):
        got = to_pairs(
            [{"prompt": text, **ANSWERS}, {"chosen": text, "rejected": text + " "}, {"prompt": "q", **ANSWERS}]
        )
        assert got.dropped == {"message list written as text": 2}
