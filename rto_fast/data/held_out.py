"""Which prompts are held out for evaluation, and that nothing else asks them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from rto_fast.data.parse import Message

T = TypeVar("T")


class HeldOut:
    """Prompts that nothing may train on.

    rows  what is held out, anything with a `prompt`
    ids   their prompts' token ids, cut to data.max_prompt

    A prompt is held out when its roles and words are those of one of these (whitespace aside, as in `split`), or when
    its token ids are: as they reach the model, so that two long prompts that become equal by losing their oldest tokens
    are one. Ids that are equal before the cut are equal behind it.
    """

    REASON = "prompt is held out for evaluation"
    FIX = "; give rows with other prompts, or hold out fewer with --data.held-out or another --data.evaluation"

    def __init__(self, rows: Sequence[object], ids: Sequence[Sequence[int]]):
        self._words = {_prompt_key(row, 0) for row in rows}
        self._ids = set(map(tuple, ids))

    def holds(self, row: object, ids: Sequence[int]) -> bool:
        return tuple(ids) in self._ids or _prompt_key(row, 0) in self._words


def split(rows: Sequence[T], held_out: float | int, seed: int = 0) -> tuple[list[T], list[T]]:
    """(train, held out), decided by prompt: rows with the same prompt are on one side.

    held_out  below 1: a fraction of the rows; an integer: so many rows; 0: none. As near as whole prompts come from
              below, at least one prompt
    seed      another seed, another choice; the order of the rows does not matter to it, and both sides keep it

    Rows are anything with a `prompt` (messages or token ids); prompts that differ in whitespace only are the same.
    Raises ValueError when a side that should have rows would have none.
    """
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"data.held_out: wanted a fraction below 1 or a count of rows, got {held_out}")
    if held_out == 0:
        return list(rows), []
    wanted = int(held_out) if held_out >= 1 else max(1, min(round(held_out * len(rows)), len(rows) - 1))
    keys = [_prompt_key(row, seed) for row in rows]
    sizes = Counter(keys)
    if wanted >= len(rows) or len(sizes) < 2:
        raise ValueError(
            f"data.held_out: cannot hold out {wanted} of {len(rows)} rows with {len(sizes)} distinct prompts (rows of "
            "one prompt stay together); ask for fewer or give more data"
        )
    chosen, count = set(), 0
    for key in sorted(sizes):
        if count + sizes[key] <= wanted:
            chosen.add(key)
            count += sizes[key]
    # no prompt has few enough rows: the one with the fewest is the closest to what was asked
    chosen = chosen or {min(sorted(sizes), key=sizes.__getitem__)}
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in chosen]


def _prompt_key(row: Any, seed: int) -> bytes:
    prompt = getattr(row, "prompt", row)
    parts = [(m.role, " ".join(m.content.split())) if isinstance(m, Message) else m for m in prompt]
    return hashlib.blake2b(repr((seed, parts)).encode(), digest_size=16).digest()
