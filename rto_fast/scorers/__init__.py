"""Where sentence scores come from when they are not read off a reward model with the policy's tokenizer.

rules         a final-number check, a regular expression, or a Python function of one's own
server        a reward server over HTTP
retokenised   a reward model with another tokenizer
serve         such a server, for a reward model: python -m rto_fast.scorers.serve
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: str
    """As the policy read it, without special tokens."""
    response: str
    """Without special tokens."""
    finished: bool = True
    """Whether the policy ended it (EOS), rather than the length limit."""
    reference: str | None = None
    """The right answer that the prompt's row came with, where it has one."""


Scorer = Callable[[list[Answer]], list[float]]
"""One finite number per answer, in the order of the answers."""
GO_ON = "the same command then goes on"
"""How an error ends that stops a run and costs it nothing."""


def check_scores(scores: object, count: int, field: str, hide: Callable[[str], str] = str) -> None:
    """Raises ValueError, one sentence naming `field`, unless `scores` is a sequence of `count` finite real numbers.

    `hide` takes secrets out of what is shown of them.
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
