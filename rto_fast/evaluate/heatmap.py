"""Token rewards of an answer as a heat map: what heatmaps.json holds, and what is shown of it.

Texts come from data and models, so control characters are made visible and lengths bounded.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

MAX_TOKENS, MAX_TOKEN, MAX_PROMPT, MAX_TITLE = 1024, 64, 2000, 200
"""Tokens shown of an answer, and characters shown of a token, a prompt and a title."""


@dataclass(frozen=True)
class Heatmap:
    """One answer and the reward of each of its tokens. ValueError when the lists do not pair up or are not numbers."""

    title: str
    prompt: str
    tokens: list[str]
    """Texts that read as the answer when they are put together: a token brings its own whitespace. Tokens that make one
    character together are one text."""
    rewards: list[float]
    """One per text, e.g. beta log pi_dpo/pi_ref"""
    signs: list[int] | None = None
    """+1 right, -1 wrong, 0 neither, where the truth is known"""

    def __post_init__(self) -> None:
        if not all(isinstance(x, str) for x in (self.title, self.prompt, *self.tokens)):
            raise ValueError("Heatmap: title, prompt and tokens must be strings")
        if len(self.tokens) != len(self.rewards):
            raise ValueError(
                f"Heatmap: rewards must be one per token, got {len(self.rewards)} for {len(self.tokens)} tokens"
            )
        if not all(map(is_number, self.rewards)):
            raise ValueError("Heatmap: rewards must be finite numbers below 1e30")
        if self.signs is not None and (
            len(self.signs) != len(self.tokens) or not all(type(s) is int and -1 <= s <= 1 for s in self.signs)
        ):
            raise ValueError("Heatmap: signs must be None, or one of -1, 0, 1 per token")


def is_number(x: Any) -> TypeGuard[float]:
    """Whether a value of somebody's JSON is a number that charts can place: beyond 1e30 nothing is."""
    # a comparison also holds for integers that no float can hold; it is false for nan
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30


def scale_of(heatmaps: Sequence[Heatmap]) -> float:
    """The |reward| of full colour: the 95 % quantile over all tokens, so that one outlier does not pale the others."""
    sizes = sorted(abs(r) for h in heatmaps for r in h.rewards)
    return (sizes[math.ceil(0.95 * (len(sizes) - 1))] or sizes[-1] or 1.0) if sizes else 1.0


def to_json(heatmaps: Sequence[Heatmap]) -> str:
    """The text of heatmaps.json: a list of {title, prompt, tokens, rewards, signs}."""
    return json.dumps([asdict(h) for h in heatmaps], allow_nan=False) + "\n"


def from_json(text: str) -> list[Heatmap]:
    """What `to_json` wrote. ValueError, one line, for anything else."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"heatmaps: not valid JSON: {error}") from None
    names = ("title", "prompt", "tokens", "rewards", "signs")
    if not isinstance(rows, list):
        raise ValueError(f"heatmaps: must be a list of maps, got {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or {*row, "signs"} != set(names):
            raise ValueError(f"heatmaps: map {i + 1} must be an object of {', '.join(names)}")
        if not all(isinstance(x, list) for x in (row["tokens"], row["rewards"], row.get("signs") or [])):
            raise ValueError(f"heatmaps: map {i + 1}: tokens and rewards must be lists, and signs a list or null")
    return [Heatmap(**row) for row in rows]


def visible(text: str, limit: int) -> str:
    """The text with everything unprintable (controls, escapes, direction marks) spelled out, at most `limit` long."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def prompt_lines(prompt: str) -> list[str]:
    """A prompt's lines that are not blank, made visible; of a long one the beginning and the end."""
    if len(prompt) > MAX_PROMPT:
        prompt = f"{prompt[: MAX_PROMPT // 2]} … {prompt[3 - MAX_PROMPT // 2 :]}"
    return [visible(line.strip(), MAX_PROMPT) for line in prompt.split("\n") if line.strip()]


def shown_tokens(heatmap: Heatmap) -> list[tuple[int, str, str]]:
    """(number, space before it, text) of the tokens to show."""
    out, gap = [], False
    for i, token in enumerate(heatmap.tokens[:MAX_TOKENS]):
        body = token.strip(" ")
        # a token that is nothing but whitespace has a reward too, so it must be seen
        text = visible(body.replace("\n", "↵"), MAX_TOKEN) or "␣"
        out.append((i, " " if i and body and (gap or token.startswith(" ")) else "", text))
        gap = bool(body) and token.endswith(" ")
    return out


def left_out(heatmap: Heatmap) -> list[str]:
    more = len(heatmap.tokens) - MAX_TOKENS
    return [f"... {more} more tokens"] if more > 0 else []
