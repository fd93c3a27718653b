"""Where sentence scores come from, in training and in evaluation.

reward_model  a reward model, with the policy's tokenizer or one of its own
rules         a final-number check, a regular expression, or a Python function of one's own
server        a reward server over HTTP
serve         such a server, for a reward model: python -m rto_fast.judges.serve
llm/          a language model, asked which of two answers is better
choose        which of these a run is scored by
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they bring torch, which a rule of one's own need not wait for
    from transformers import PreTrainedTokenizerBase

    from rto_fast.data.parse import Message
    from rto_fast.rollout import Completion


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a policy, as rules and reward servers see it: texts, no tokens. A rule of one's own, for
    --rto.score.rule rewards:score, is a file rewards.py where one starts, with

        def score(answers):
            return [float(a.finished) - 0.01 * len(a.response.split()) for a in answers]
    """

    prompt: str
    """What was answered: the whole dialogue in the template's form, as the policy read it, without special tokens."""
    response: str
    """What the policy wrote, without special tokens; whitespace at its ends is its own. It may be empty."""
    finished: bool = True
    """True where the policy ended the answer itself (EOS), False where the length limit cut it off."""
    reference: str | None = None
    """The right answer: column `reference` of the prompt's row in --data.prompts; None where that has none."""
    messages: tuple["Message", ...] = ()
    """The prompt's turns (`role`, `content`), before a template made them one text; empty where nothing but the text is
    known, and with data.template none, where the prompt is no conversation."""


Scorer = Callable[[list[Answer]], list[float]]
"""One finite number per answer, in the order of the answers."""
Judge = Callable[[list["Completion"]], list[float]]
"""The same of answers as token ids."""
GO_ON = "the same command then goes on"
"""How an error ends that stops a run and costs it nothing."""


def check_scores(scores: object, count: int, field: str, hide: Callable[[str], str] = str) -> list[float]:
    """The scores as floats.

    Raises ValueError, one sentence naming `field`, unless `scores` is a sequence of `count` finite real numbers; `hide`
    takes secrets out of what is shown of them.
    """
    if not isinstance(scores, Sequence) or isinstance(scores, str | bytes):
        raise ValueError(f"{field}: wanted a list of {count} scores, one per answer, got {_brief(scores, hide)}")
    if len(scores) != count:
        raise ValueError(f"{field}: wanted {count} scores, one per answer, got {len(scores)}")
    for i, score in enumerate(scores):
        if not isinstance(score, Real) or not _is_finite(score):
            raise ValueError(
                f"{field}: every score must be a finite number, got {_brief(score, hide)} for answer {i + 1} of {count}"
            )
    return [float(score) for score in scores]


def as_texts(
    tokenizer: "PreTrainedTokenizerBase",
    answers: Sequence["Completion"],
    conversations: Mapping[tuple[int, ...], Sequence["Message"]],
    references: Mapping[tuple[int, ...], str] | None = None,
) -> list[Answer]:
    """A policy's answers as texts, with what `conversations` and `references` know of a prompt by its token ids."""
    return [
        Answer(
            prompt=str(tokenizer.decode(a.prompt, skip_special_tokens=True)),
            response=str(tokenizer.decode(a.response, skip_special_tokens=True)),
            finished=a.finish == "eos",
            reference=(references or {}).get(tuple(a.prompt)),
            messages=tuple(conversations.get(tuple(a.prompt), ())),
        )
        for a in answers
    ]


def _is_finite(score: Real) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer that no float holds
        return False


def _brief(value: object, hide: Callable[[str], str]) -> str:
    try:
        text = hide(repr(value))
    except Exception:  # it comes from anybody's code
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"
