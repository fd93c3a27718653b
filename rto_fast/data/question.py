"""What a row asks where no column is called prompt: columns of other names that are well known, and no others.

instruction, instruction + input       Alpaca: the two with an empty line between them
question, query, input, problem        Orca and others: where it is the only one of these
messages, conversations                beside chosen and rejected: a message list that waits for an answer
system, system_prompt                  beside any of these, and beside prompt: a system message before it

Any other likely column, or two of these, is an error that asks for --data.columns: a prompt is never guessed, and a
likely one never passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

QUESTIONS = ("instruction", "question", "query", "input", "problem")
TURNS = ("messages", "conversations")
SYSTEM = ("system", "system_prompt")
UNCLEAR = ("context", "document", "passage", "article", "post", "history", "conversation", "user", "ask", "prompts")
ANSWERS = ("output", "response")
"""Of a demonstration, beside a question."""


def asked(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a row that are its prompt, in their order; none where no column is a likely one.

    Raises ValueError, which says which columns there are and how to choose.
    """
    likely = _likely(row)
    found = [name for name in likely if name not in SYSTEM and not is_blank(row[name])]
    # a blank question is an empty prompt, not a row that has none
    found = found or [name for name in likely if name in QUESTIONS]
    if tuple(found) in (("instruction", "input"), *((name,) for name in (*QUESTIONS, *TURNS))):
        return tuple(found)
    if found := found or [name for name in likely if name in SYSTEM and not is_blank(row[name])]:
        columns = " and ".join(repr(name) for name in found)
        one = next((name for name in found if name not in SYSTEM), "YOURS")
        raise ValueError(
            f"cannot tell what is asked: no column 'prompt', but {columns}; name it with --data.columns prompt={one}, "
            "or join what belongs to it in one column prompt"
        )
    return ()


def passed_over(row: Mapping[str, Any], read: Sequence[str]) -> list[str]:
    """Columns with a text that might be part of the prompt and are not among those read."""
    return [name for name in _likely(row) if name not in (*read, *TURNS, *SYSTEM) and not is_blank(row[name])]


def _likely(row: Mapping[str, Any]) -> list[str]:
    known = [*QUESTIONS, *TURNS, *SYSTEM, *UNCLEAR]
    # in capitals a column is no less likely, and never clear
    others = [name for name in row if str(name) not in (*known, "prompt") and str(name).lower() in (*known, "prompt")]
    return [name for name in known if name in row] + others


def is_blank(value: Any) -> bool:
    return value is None or not (value.strip() if isinstance(value, str) else value)
