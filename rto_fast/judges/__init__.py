"""Where sentence scores come from when they are not read off a reward model with the policy's tokenizer.

rules         a final-number check, a regular expression, or a Python function of one's own
server        a reward server over HTTP
retokenised   a reward model with another tokenizer
serve         such a server, for a reward model: python -m rto_fast.judges.serve
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rto_fast.rollout import Completion  # brings torch, which a user's rule need not wait for


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


Scorer = Callable[[list[Answer]], list[float]]
"""One finite number per answer, in the order of the answers."""
Judge = Callable[[list["Completion"]], list[float]]
"""The same of answers as token ids."""
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
