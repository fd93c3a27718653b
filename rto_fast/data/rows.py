"""One shape for every preference, prompt and demonstration row, whatever form the data came in.

A column that is missing or of the wrong type is a mistake of the whole data set: ValueError at the first such row.
Bad content (an empty response, two equal ones) is a fact of real data: the row is dropped and counted by its reason.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rto_fast.data.parse import (
    BadContent,
    Message,
    is_dialogue,
    is_written_list,
    only_assistant,
    split_common_prefix,
    split_conversation,
    split_dialogue,
)
from rto_fast.data.question import ANSWERS, TURNS, asked
from rto_fast.data.row import COLUMNS, Row, names_of
from rto_fast.files.text import is_unicode

Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, str] | None
T = TypeVar("T", bound="Pair | Prompt | Demonstration")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked."""

    prompt: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer to imitate; an empty prompt means that the whole text is the answer."""

    prompt: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True)
class Normalised(Generic[T]):
    """The usable rows and what became of the others."""

    items: list[T]
    rows: list[int]
    """The row of the input (from 0) that each item came from."""
    dropped: dict[str, int]
    """Reason -> number of rows."""
    form: str
    """The form of the first row, in words."""


def to_pairs(rows: Rows, *, columns: Columns = None, strict: bool = False) -> Normalised[Pair]:
    """Rows -> `Pair`s. Understood are, by the types of their columns,

    chosen, rejected          whole dialogues "\\n\\nHuman: ...\\n\\nAssistant: ..." (HH-RLHF), split before the last
                              turn, whose history must be the same in both; whole message lists likewise; any other
                              two strings are split at the last word boundary of their common beginning
    prompt, chosen, rejected  prompt: a message list, a dialogue string or a question (one user turn);
                              answers: strings, or message lists that end in the assistant's turn
    instruction (+ input), question, query, ... in place of prompt, and system beside it: `data.question`

    columns  where a column has another name: {"prompt": "question"} (--data.columns prompt=question)
    strict   a row that would be dropped is an error

    Raises ValueError, one line, with the row number (from 1) and the column: column missing, value of a wrong type;
    and when no usable row is left, with the counts of the reasons.
    """
    return _normalise(rows, _pair, columns, strict)


def to_prompts(rows: Rows, *, columns: Columns = None, strict: bool = False) -> Normalised[Prompt]:
    """Rows -> `Prompt`s: a prompt column (message list, dialogue string, question) or what stands for it, the prompt of
    a preference row, or of a `messages` (`conversations`) row without its last turn. Arguments and errors as in
    `to_pairs`."""
    return _normalise(rows, _prompt, columns, strict)


def to_demonstrations(rows: Rows, *, columns: Columns = None, strict: bool = False) -> Normalised[Demonstration]:
    """Rows -> `Demonstration`s: prompt (or what stands for it) + completion (output, response), messages or
    conversations (the last assistant turn is the completion), the chosen answer of a preference row, or text (no
    prompt). Arguments and errors as in `to_pairs`."""
    return _normalise(rows, _demonstration, columns, strict)


NORMALISE: dict[str, Callable[..., Normalised[Any]]] = {
    "pairs": to_pairs,
    "demonstrations": to_demonstrations,
    "prompts": to_prompts,
}


def detect_kind(row: Mapping[str, Any], columns: Columns = None) -> str:
    """ "pairs", "demonstrations" or "prompts", from the columns of one row."""
    columns = _checked(columns, row)
    found = {name for name in COLUMNS if columns.get(name, name) in row}
    if {"chosen", "rejected"} <= found:
        return "pairs"
    if found & {"completion", "messages", "text", "chosen"} or "conversations" in row:
        return "demonstrations"
    if "prompt" in found or asked(row):
        return "demonstrations" if any(name in row for name in ANSWERS) else "prompts"
    raise ValueError(
        f"data: none of the columns prompt, chosen, rejected, completion, messages, text; found {names_of(row)}; "
        "name yours with --data.columns, e.g. prompt=question completion=answer"
    )


def _pair(row: Row) -> Pair:
    # ShareGPT's answers are a message each
    chosen, rejected = (
        [x] if isinstance(x, dict) and "value" in x else x for x in (row.get("chosen"), row.get("rejected"))
    )
    if chosen is None or rejected is None:
        raise BadContent("empty response", f"column {'chosen' if chosen is None else 'rejected'!r} is null")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise row.wrong("rejected", f"a {type(chosen).__name__} like 'chosen'", rejected)
    pair = (_pair_of_messages if isinstance(chosen, list) else _pair_of_strings)(row, chosen, rejected)
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row.text(name, text)
    if pair.chosen.strip() == pair.rejected.strip():
        raise BadContent("chosen equals rejected", "the two responses are the same")
    return pair


def _pair_of_messages(row: Row, one: list[Any], two: list[Any]) -> Pair:
    chosen, rejected = row.as_messages("chosen", one), row.as_messages("rejected", two)
    if chosen and chosen[0].role == "assistant" and row.asks:
        row.form = f"{row.asks_in_words} + message lists chosen, rejected"
        return Pair(row.prompt(), only_assistant(chosen), only_assistant(rejected))
    row.form = "whole conversations as message lists chosen, rejected"
    return _whole(row, split_conversation(chosen), split_conversation(rejected))


def _pair_of_strings(row: Row, chosen: Any, rejected: Any) -> Pair:
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str):
            raise row.wrong(name, "a string or a list of messages", text)
    if is_written_list(chosen) and is_written_list(rejected):
        raise BadContent("message list written as text", "write the rows as .jsonl with message lists in them")
    if is_dialogue(chosen) and is_dialogue(rejected):
        row.form = "whole Human/Assistant dialogues as strings chosen, rejected (HH-RLHF)"
        return _whole(row, split_dialogue(chosen), split_dialogue(rejected))
    if row.asks:
        row.form = f"{row.asks_in_words} + strings chosen, rejected"
        return Pair(row.prompt(), chosen, rejected)
    row.form = "strings chosen, rejected that begin with the prompt"
    if not chosen.strip() or not rejected.strip():
        raise BadContent("empty response", f"column {'rejected' if chosen.strip() else 'chosen'!r} is blank")
    if chosen.strip() == rejected.strip():
        raise BadContent("chosen equals rejected", "the two texts are the same")
    prompt, good, bad = split_common_prefix(chosen, rejected)
    return Pair((Message("text", prompt),), good, bad)


def _whole(row: Row, one: tuple[tuple[Message, ...], str], two: tuple[tuple[Message, ...], str]) -> Pair:
    (history, chosen), (other, rejected) = one, two
    if history != other:
        raise BadContent("histories differ", "chosen and rejected differ before their last turn")
    if not history or not history[-1].content.strip():
        raise BadContent("empty prompt", "the turn before the response is blank or missing")
    return Pair(row.behind_system(history), chosen, rejected)


def _prompt(row: Row) -> Prompt:
    if "prompt" not in row:
        if "chosen" in row and "rejected" in row:
            return Prompt(_pair(row).prompt)
        if turns := _turns(row):
            row.form = turns
            messages = row.messages(turns)
            asks = split_conversation(messages)[0] if messages[-1].role == "assistant" else messages
            return Prompt(row.behind_system(asks))
    row.form = " + ".join(row.asks) or "prompt"
    return Prompt(row.prompt())


def _demonstration(row: Row) -> Demonstration:
    answer = "completion"
    if answer not in row:
        if "chosen" in row and "rejected" in row:
            pair = _pair(row)
            return Demonstration(pair.prompt, pair.chosen)
        if "chosen" in row:
            row.form = f"{' + '.join(row.asks) or 'prompt'} + chosen"
            return Demonstration(row.prompt(), row.text("chosen"))
        if turns := _turns(row):
            row.form = f"{turns}, the last assistant turn is the response"
            prompt, completion = split_conversation(row.messages(turns))
            return Demonstration(row.behind_system(prompt), row.text(turns, completion))
        answers = [name for name in ANSWERS if name in row]
        if "text" in row and not answers:
            row.form = "text without a prompt"
            return Demonstration((), row.text("text"))
        answer = answers[0] if answers and row.asks else answer
    row.form = f"{' + '.join(row.asks) or 'prompt'} + {answer}"
    prompt, completion = row.prompt(), row.get(answer)
    if isinstance(completion, list):
        completion = only_assistant(row.as_messages(answer, completion))
    return Demonstration(prompt, row.text(answer, completion))


def _turns(row: Row) -> str:
    """The column of a whole conversation, or ""."""
    return next((name for name in TURNS if name in row), "")


def _normalise(rows: Rows, parse: Callable[[Row], T], columns: Columns, strict: bool) -> Normalised[T]:
    columns = _checked(columns, rows[0] if rows else {})
    items: list[T] = []
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    first = form = ""
    for i, raw in enumerate(rows):
        row = Row(raw, i + 1, columns)
        try:
            if raw.get("tools") not in (None, "", "[]", []):
                raise BadContent("tool use", "column 'tools' is not read")
            item = parse(row)
            answers = [getattr(item, name, "") for name in ("chosen", "rejected", "completion")]
            if not all(map(is_unicode, [*answers, *(m.content for m in item.prompt)])):
                raise BadContent("not Unicode text", "a string holds half a surrogate pair")
            items.append(item)
            kept.append(i)
        except BadContent as bad:
            if strict:
                raise ValueError(f"data row {i + 1}: {bad.reason}: {bad}") from None
            dropped[bad.reason] += 1
            first = first or f"row {i + 1}: {bad}"
        form = form or row.form
    if not items:
        counts = ", ".join(f"{n} x {reason}" for reason, n in dropped.most_common()) or "there are no rows"
        raise ValueError(f"data: none of the {len(rows)} rows can be used: {counts}" + (f" ({first})" if first else ""))
    return Normalised(items, kept, dict(dropped), form)


def _checked(columns: Columns, row: Mapping[str, Any]) -> dict[str, str]:
    columns = dict(columns or {})
    columns.pop("reference", None)  # the right answers to prompts, which `corpus` looks up
    for name, actual in columns.items():
        if name not in COLUMNS:
            raise ValueError(f"data.columns: unknown column {name!r}; the names are {', '.join(COLUMNS)}, reference")
        if row and actual not in row:
            raise ValueError(
                f"data.columns: {name}={actual}, but row 1 has no column {actual!r}; found {names_of(row)}"
            )
    return columns
