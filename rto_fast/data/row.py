"""One raw row behind the names of columns that the rest of the code uses."""

from collections.abc import Mapping
from typing import Any

from rto_fast.data.parse import BadContent, Message, as_messages
from rto_fast.data.question import SYSTEM, TURNS, asked, is_blank, passed_over

COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "text", "system")


class Row:
    """raw: the row; number: its place, from 1; columns: what the data calls a column, by the name used here."""

    __slots__ = ("columns", "form", "number", "raw")

    def __init__(self, raw: Mapping[str, Any], number: int, columns: Mapping[str, str]):
        self.raw, self.number, self.columns, self.form = raw, number, columns, ""

    def __contains__(self, name: str) -> bool:
        return self.columns.get(name, name) in self.raw

    def get(self, name: str) -> Any:
        actual = self.columns.get(name, name)
        if actual not in self.raw:
            asked = f" (given as {name}={actual})" if name in self.columns else ""
            raise ValueError(
                f"data row {self.number}: no column {actual!r}{asked}; found {names_of(self.raw)}; "
                f"name yours with --data.columns {name}=YOURS"
            )
        return self.raw[actual]

    def text(self, name: str, value: object = None) -> str:
        """A response: a string that is not blank."""
        value = self.get(name) if value is None else value
        if value is None:
            raise BadContent("empty response", f"column {name!r} is null")
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        if not value.strip():
            raise BadContent("empty response", f"column {name!r} is blank")
        return value

    @property
    def asks(self) -> tuple[str, ...]:
        """The columns that the prompt is made of: `prompt`, or those that are known to stand for it; or none."""
        if "prompt" in self:
            return ("prompt",)
        taken = self.columns.values()
        try:
            return asked({name: value for name, value in self.raw.items() if name not in taken})
        except ValueError as error:
            raise ValueError(f"data row {self.number}: {error}") from None

    @property
    def asks_in_words(self) -> str:
        """What `prompt` is made of, and which likely columns are passed over."""
        names = self.asks or ("prompt",)
        over = passed_over(self.raw, [*self.columns.values(), "prompt"]) if names == ("prompt",) else []
        kind = "messages" if isinstance(self.get(names[0]), list) else "string"
        words = f"{' + '.join([*self._system_columns()[:1], *names])} ({kind})"
        return f"{words} (not read: {', '.join(over)})" if over else words

    def prompt(self) -> tuple[Message, ...]:
        """What is asked, behind a system message where a column holds one."""
        names = self.asks or ("prompt",)
        if len(names) == 2:
            parts = [self._string(name) for name in names]
            if not parts[0].strip():
                raise BadContent("empty prompt", f"column {names[0]!r} is blank")
            return self.behind_system((Message("user", "\n\n".join(part for part in parts if part.strip())),))
        messages = self.messages(names[0])
        if names[0] in TURNS and messages[-1].role == "assistant":
            raise BadContent("prompt ends in the assistant's turn", f"column {names[0]!r} leaves nothing to answer")
        return self.behind_system(messages)

    def behind_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages behind the text of a system column, where there is one and they do not begin with their own."""
        names = self._system_columns()
        if not names or not messages or messages[0].role in ("system", "text"):
            return messages
        return (Message("system", self._string(names[0])), *messages)

    def _system_columns(self) -> list[str]:
        names = [self.columns["system"]] if "system" in self.columns else SYSTEM
        return [name for name in names if not is_blank(self.raw.get(name))]

    def _string(self, name: str) -> str:
        value = self.raw[name]
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value or ""

    def messages(self, name: str) -> tuple[Message, ...]:
        value = self.get(name)
        if is_blank(value) and isinstance(value, str | list | None):
            raise BadContent("empty prompt", f"column {name!r} is empty")
        messages = self.as_messages(name, value)
        if not messages or not messages[-1].content.strip():
            raise BadContent("empty prompt", f"the last turn of column {name!r} is blank")
        return messages

    def as_messages(self, name: str, value: object) -> tuple[Message, ...]:
        try:
            return as_messages(value)
        except TypeError as error:
            raise ValueError(f"data row {self.number}: column {self.columns.get(name, name)!r}: {error}") from None

    def wrong(self, name: str, wanted: str, value: object) -> ValueError:
        actual = self.columns.get(name, name)
        return ValueError(f"data row {self.number}: column {actual!r} must be {wanted}, got {type(value).__name__}")


def names_of(row: Mapping[str, Any]) -> str:
    """A row's columns, for an error."""
    names = [repr(str(name)) for name in row]
    return ", ".join(names[:16]) + (", ..." if len(names) > 16 else "") if names else "no columns"
