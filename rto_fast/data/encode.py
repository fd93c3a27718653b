"""Rows to token ids: what is cut, what is dropped, and how long the rest is."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, TypeVar, Unpack

from rto_fast.data.held_out import HeldOut
from rto_fast.data.rows import Demonstration, Pair, Prompt
from rto_fast.data.template import Template

MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN = 2**20, 64
"""A text of more characters, and of more for each token of max_length, is not tokenised."""
TOO_LONG = "text far beyond max_length"
_CHUNK, _CHUNK_CHARACTERS = 1024, 2**24

E = TypeVar("E")
Asks = Pair | Demonstration | Prompt


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids; a prompt starts with BOS (where there is one), a response ends in EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class EncodedDemonstration:
    """Token ids of a prompt and of the response to imitate."""

    prompt: list[int]
    response: list[int]


@dataclass(frozen=True, slots=True)
class EncodingReport:
    """What became of the rows."""

    rows: int
    kept: list[int]
    """The index among the rows given of every item returned."""
    dropped: dict[str, int]
    """Reason -> number of rows."""
    truncated_prompts: int
    """Kept rows whose prompt lost tokens at its left end."""
    literal_specials: int
    """Kept rows that spell out a special token in their text, beyond EOS at the end of a response; it was encoded as
    plain text, or as the token where the template parses them."""
    marks: dict[str, int] = field(default_factory=dict)
    """Chat mark -> kept rows whose prompt holds it already, and is put into the template once more."""
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    """For "prompt", then "chosen" and "rejected" or "response": {"min", "10%", "50%", "90%", "99%", "max", "sum"} of
    the kept rows' numbers of tokens."""


Encoded = tuple[list[E], EncodingReport]


class Limits(TypedDict):
    """Numbers of tokens."""

    max_length: int
    """A row is dropped when prompt + response (either of two) is longer; responses are never cut, for one without its
    EOS would teach not to stop."""
    max_prompt: NotRequired[int | None]
    """A longer prompt keeps its BOS and its last tokens, max_prompt together; None (the default): max_length // 2. It
    is cut the same way for every stage, whatever the response, so that all of them see one prompt."""


class Options(Limits, total=False):
    """What every `encode_...` takes by name."""

    without: HeldOut | None
    """Prompts that are held out: a row that asks one is dropped."""
    field: str
    """What the rows are called in errors; "data" by default."""


def encode_pairs(pairs: Sequence[Pair], template: Template, **options: Unpack[Options]) -> Encoded[EncodedPair]:
    """`Pair`s -> token ids.

    Dropped, by reason: "response does not fit", "empty response" (nothing but EOS), "responses equal as tokens",
    "special token in the text" (of a response, by a tokenizer that cannot be kept from it), "refused by the chat
    template", "prompt has no token" (an empty prompt, and a tokenizer without BOS), "prompt is held out for
    evaluation", "text far beyond max_length" (a prompt or response of more than 2^20 characters, and of more than 64
    for each token of max_length).
    Raises ValueError when nothing is left, with the counts; when max_prompt is not below max_length, for a prompt that
    fills the context leaves no room for a response.
    """
    return _encode(pairs, template, ("chosen", "rejected"), EncodedPair, **options)


def encode_demonstrations(
    demonstrations: Sequence[Demonstration | Pair], template: Template, **options: Unpack[Options]
) -> Encoded[EncodedDemonstration]:
    """`Demonstration`s -> token ids; `Pair`s are taken too, for their chosen answer. As `encode_pairs`."""
    name = "completion" if demonstrations and hasattr(demonstrations[0], "completion") else "chosen"
    return _encode(demonstrations, template, (name,), EncodedDemonstration, **options)


def encode_prompts(prompts: Sequence[Asks], template: Template, **options: Unpack[Options]) -> Encoded[list[int]]:
    """Anything with a `prompt` -> the prompt's token ids, cut as in `encode_pairs`; max_length is the context that
    prompt and answer share, of which at least one token stays for the answer."""
    return _encode(prompts, template, (), lambda prompt: prompt, **options)


ENCODE: dict[str, Callable[..., Encoded[Any]]] = {
    "pairs": encode_pairs,
    "demonstrations": encode_demonstrations,
    "prompts": encode_prompts,
}


def _encode(
    rows: Sequence[Asks],
    template: Template,
    answers: tuple[str, ...],
    make: Callable[..., E],
    *,
    max_length: int,
    max_prompt: int | None = None,
    without: HeldOut | None = None,
    field: str = "data",
) -> Encoded[E]:
    if max_length < 2:
        raise ValueError(f"data.max_length: must be at least 2 (a prompt token and an answer token), got {max_length}")
    if max_prompt is None:
        max_prompt = max(1, max_length // 2)
    if not 1 <= max_prompt < max_length:
        raise ValueError(
            f"data.max_prompt: must be at least 1 and below max_length = {max_length}, so that an answer fits behind "
            f"the prompt, got {max_prompt}"
        )
    tokens: list[tuple[list[int], ...]] = []
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    marks: Counter[str] = Counter()
    cut, literal, refusal = 0, 0, ""
    longest = max(MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN * max_length)
    for numbered in _chunks(rows, answers, longest, dropped):
        chunk = [row for _, row in numbered]
        refused: dict[int, str] = {}
        prompts = template.prompts([row.prompt for row in chunk], refused)
        refusal = refusal or next(iter(refused.values()), "")
        encoded = [template.responses([getattr(r, name) for r in chunk], [r.prompt for r in chunk]) for name in answers]
        for place, ((i, row), prompt, *responses) in enumerate(zip(numbered, prompts, *encoded, strict=True)):
            short = _cut_left(prompt, max_prompt, template.bos_id)
            reason = "refused by the chat template" if place in refused else ""
            reason = reason or _reason(template, short, responses, max_length)
            if not reason and without is not None and without.holds(row, short):
                reason = HeldOut.REASON
            if reason:
                dropped[reason] += 1
                continue
            tokens.append((short, *responses))
            kept.append(i)
            cut += len(short) < len(prompt)
            texts = [m.content for m in row.prompt]
            texts += [template.without_eos(getattr(row, name)) for name in answers]
            if mark := template.marker_in(row.prompt):
                marks[mark] += 1
            literal += any(map(template.has_literal_special, texts))
    if not tokens:
        counts = ", ".join(f"{n} x {reason}" for reason, n in dropped.most_common()) or "there are no rows"
        fixes = {
            "response does not fit": "; raise data.max_length",
            TOO_LONG: "; shorten its texts",
            HeldOut.REASON: HeldOut.FIX,
        }
        advice = f" ({refusal})" if refusal else "".join(fix for reason, fix in fixes.items() if dropped[reason])
        raise ValueError(
            f"{field}: none of the {len(rows)} rows is left with max_length {max_length} and max_prompt {max_prompt}: "
            f"{counts}{advice}"
        )
    # a demonstration's response may come from a column `completion` or `chosen`
    names = ("prompt", *answers) if len(answers) != 1 else ("prompt", "response")
    lengths = {name: _quantiles(ids) for name, ids in zip(names, zip(*tokens, strict=True), strict=True)}
    items = [make(*ids) for ids in tokens]
    return items, EncodingReport(len(rows), kept, dict(dropped), cut, literal, dict(marks), lengths)


def _chunks(
    rows: Sequence[Asks], answers: tuple[str, ...], longest: int, dropped: Counter[str]
) -> Iterator[list[tuple[int, Any]]]:
    """Rows to encode together, with their numbers; those with a text above `longest` characters are dropped: to
    tokenise one may take minutes and gigabytes."""
    chunk: list[tuple[int, Any]] = []
    characters = 0
    for i, row in enumerate(rows):
        lengths = [sum(len(m.content) for m in row.prompt), *(len(getattr(row, name)) for name in answers)]
        if max(lengths) > longest:
            dropped[TOO_LONG] += 1
            continue
        if len(chunk) == _CHUNK or characters + sum(lengths) > _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
        chunk.append((i, row))
        characters += sum(lengths)
    yield chunk


def _cut_left(prompt: list[int], max_prompt: int, bos_id: int | None) -> list[int]:
    if len(prompt) <= max_prompt:
        return prompt
    if bos_id is not None and prompt[0] == bos_id:
        return [bos_id, *prompt[len(prompt) - max_prompt + 1 :]]
    return prompt[len(prompt) - max_prompt :]


def _reason(template: Template, prompt: list[int], responses: list[list[int]], max_length: int) -> str:
    if not prompt:
        return "prompt has no token"
    if not all(responses):
        return "empty response"
    if any(template.holds_special(r[:-1]) for r in responses):
        return "special token in the text"
    if len(prompt) + max((len(r) for r in responses), default=1) > max_length:
        return "response does not fit"
    if len(responses) == 2 and responses[0] == responses[1]:
        return "responses equal as tokens"
    return ""


def _quantiles(sequences: Iterable[list[int]]) -> dict[str, int]:
    s = sorted(map(len, sequences))
    at = {"min": 0.0, "10%": 0.1, "50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}
    return {name: s[round(q * (len(s) - 1))] for name, q in at.items()} | {"sum": sum(s)}
