"""Conversations out of strings and message lists: pure functions on one row's values."""

import re
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_TOOLS = ("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
_WRITTEN_LIST = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_TURN = re.compile(r"\n\n(Human|Assistant):")


class BadContent(Exception):
    """A row that is well-formed and useless; `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Role "text" is not a turn but raw text that a response continues as it stands."""

    role: str
    content: str


def as_messages(value: object) -> tuple[Message, ...]:
    """A prompt column as messages: a message list, a Human/Assistant dialogue, or a string (one user turn).

    Messages are {role, content} or {from, value}; content may be a list of text parts. TypeError says what is wrong.
    BadContent where tools are used, and for a message list that is written as text (in a .csv).
    """
    if isinstance(value, str):
        if is_written_list(value):
            raise BadContent("message list written as text", "write the rows as .jsonl with message lists in them")
        if not is_dialogue(value):
            return (Message("user", value),)
        turns = _turns(value)
        # a dialogue that is a prompt ends in an open "Assistant:", which the template writes itself
        return turns[:-1] if turns[-1] == Message("assistant", "") else turns
    if not isinstance(value, list | tuple):
        raise TypeError(f"wanted a string or a list of messages, got {type(value).__name__}")
    return tuple(_message(m) for m in value)


def _message(value: object) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"wanted messages {{role, content}}, got {type(value).__name__}")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise TypeError(f"a message has no role; its keys are {', '.join(map(str, value))}")
    if role.lower() in _TOOLS or value.get("tool_calls") or value.get("function_call"):
        raise BadContent("tool use", "calls of tools and their replies are not read")
    if isinstance(content, list):
        parts: list[Any] = [p.get("text") if isinstance(p, dict) else p for p in content]
        if not all(isinstance(p, str) for p in parts):
            raise TypeError("a message holds something else than text")
        content = "".join(parts)
    if not isinstance(content, str | None):
        raise TypeError(f"a message's content must be a string, got {type(content).__name__}")
    return Message(_ROLES.get(role.lower(), role.lower()), content or "")


def is_written_list(text: str) -> bool:
    """Whether a string is a message list in JSON or in Python's notation."""
    return _WRITTEN_LIST.match(text) is not None


def is_dialogue(text: str) -> bool:
    """Whether a string is a whole "Human: ... Assistant: ..." dialogue in the manner of HH-RLHF."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _turns(text: str) -> tuple[Message, ...]:
    pieces = _TURN.split("\n\n" + text.strip())
    roles = ("user" if name == "Human" else "assistant" for name in pieces[1::2])
    return tuple(Message(role, text.strip()) for role, text in zip(roles, pieces[2::2], strict=True))


def split_dialogue(text: str) -> tuple[tuple[Message, ...], str]:
    """A dialogue string -> (history, the last assistant turn)."""
    return split_conversation(_turns(text), "the dialogue ends in a Human turn")


def split_conversation(
    messages: tuple[Message, ...], otherwise: str = "the conversation does not end in an assistant turn"
) -> tuple[tuple[Message, ...], str]:
    """A message list -> (history, the last assistant turn); `otherwise`: what is wrong where there is none."""
    if not messages or messages[-1].role != "assistant":
        raise BadContent("last turn is not the assistant's", otherwise)
    return messages[:-1], messages[-1].content


def only_assistant(messages: tuple[Message, ...]) -> str:
    """The text of a response that is written as a message list."""
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadContent("response is not one assistant turn", f"{len(messages)} turns where one was expected")
    return messages[0].content


def split_common_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two texts with the same beginning -> (prompt, chosen, rejected), cut before the last shared space, so that no
    word is split; each response keeps the space in front of it."""
    shared = commonprefix([chosen, rejected])
    cut = max(shared.rfind(space) for space in " \n\t")
    if cut < 1 or not shared[:cut].strip():
        raise BadContent("no shared prompt", "chosen and rejected do not begin with the same words")
    return shared[:cut], chosen[cut:], rejected[cut:]
