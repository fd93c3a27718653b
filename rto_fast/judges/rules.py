"""Scores by rule: a final-number check, a regular expression, or a Python function."""

import importlib
import importlib.util
import re
import time
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial, reduce

from rto_fast.files.text import one_line
from rto_fast.judges import GO_ON, Answer, Scorer, check_scores
from rto_fast.judges.child import Child, TooLong

FIELD = "rto.score.rule"
MATH_LIMIT_S = 10.0
"""Longest judgement of one answer's number; such an answer scores 0."""
REGEX_LIMIT_S = 1.0
"""Longest search of one answer; such an answer scores 0."""
SEARCH_LIMIT_S = 10.0
"""Longest search for the answer that a function fails at."""
REGEX_GIVE_UP = 16
"""So many answers of one rollout that take too long are the pattern's fault."""


def rule_scorer(rule: str) -> Scorer:
    r"""The scorer that `rule` names.

    math              1 where the answer's final number is the row's right one, else 0, by the math-verify library.
                      Read are "#### 42" (GSM8K), \boxed{42}, "the answer is 42" and else the last number; 1,234 and
                      1234, 0.5 and 1/2 are the same. A cut-off answer counts only where its number is marked.
    regex:PATTERN     1 where Python's re.search finds PATTERN in the response, else 0
    module:function   function(answers: list[Answer]) -> one finite number per answer: a list, tuple or 1-d array.
                      Whatever it raises, SystemExit too, is a ValueError that names the answer; not an interrupt.

    math and regex judge in a process of their own, one answer at a time: an answer that takes too long (10 s, 1 s)
    scores 0, with a warning, whatever thread calls. Raises ValueError, one sentence naming rto.score.rule: here for a
    rule that cannot be, and from the scorer for a missing right answer, scores of the wrong number or kind, and a
    pattern that takes too long over and over.
    """
    if rule == "math":
        return _math()
    kind, separator, rest = rule.partition(":")
    if kind == "regex" and separator:
        return _regex(rest)
    if separator and kind and rest:
        return _function(kind, rest)
    hint = ", did you mean 'math'?" if get_close_matches(rule.lower(), ["math"]) else ""
    raise ValueError(f"{FIELD}: wanted math, regex:PATTERN or module:function, got {rule!r}{hint}")


def _math() -> Scorer:
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(f"{FIELD}: 'math' needs the math-verify library: pip install 'rto_fast[math]'")
    child = Child("math", limit_s=MATH_LIMIT_S)

    def score(answers: list[Answer]) -> list[float]:
        for i, answer in enumerate(answers):
            if answer.reference is None:
                raise ValueError(
                    f"{FIELD}: 'math' compares with each row's right answer, but the row of answer {i + 1} of "
                    f"{len(answers)} has none; give rows with a column for it"
                )

        def judge(answer: Answer) -> bool:
            right = answer.reference or ""  # there is one, see above
            verdict = child.ask({"response": answer.response, "finished": answer.finished, "reference": right})
            if verdict is None:
                raise ValueError(f"{FIELD}: 'math' finds no number in the right answer {right[-80:]!r}")
            return verdict

        return _judge_all(answers, judge, MATH_LIMIT_S)

    return score


def _regex(pattern: str) -> Scorer:
    if not pattern:
        raise ValueError(f"{FIELD}: regex: is followed by a pattern, for example 'regex:^Yes'")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{FIELD}: {pattern!r} is not a regular expression: {error}") from None
    child = Child("regex", pattern, limit_s=REGEX_LIMIT_S)

    def score(answers: list[Answer]) -> list[float]:
        return _judge_all(answers, lambda a: bool(child.ask({"response": a.response})), REGEX_LIMIT_S, REGEX_GIVE_UP)

    return score


def _judge_all(
    answers: list[Answer], judge: Callable[[Answer], bool], limit_s: float, give_up: int | None = None
) -> list[float]:
    scores, late = [], 0
    for answer in answers:
        try:
            scores.append(float(judge(answer)))
        except TooLong:
            scores.append(0.0)
            late += 1
            if late == give_up:
                raise ValueError(
                    f"{FIELD}: the pattern takes more than {limit_s:g} s on {late} answers; nested repeats such as "
                    "(a+)+ take exponential time: write it without them"
                ) from None
    if late:
        warnings.warn(
            f"{FIELD}: {late} of {len(answers)} answers took more than {limit_s:g} s to judge and scored 0",
            stacklevel=3,
        )
    return scores


def _function(module: str, name: str) -> Scorer:
    rule = f"{FIELD} {module}:{name}"
    namespace, error = _attempt(partial(importlib.import_module, module))
    if isinstance(error, ImportError | TypeError):
        raise ValueError(
            f"{FIELD}: cannot import {module!r} ({error}); wanted math, regex:PATTERN or module:function with the "
            "module in this folder or on PYTHONPATH"
        ) from error
    if error is not None:
        said = f"importing {module!r} raised {_raised(error)}"
        raise ValueError(f"{rule}: {said}; correct it, or name another") from error
    try:
        function = reduce(getattr, name.split("."), namespace)
    except AttributeError:
        near = get_close_matches(name, dir(namespace), n=1)
        raise ValueError(
            f"{FIELD}: {module!r} has no {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
        ) from None
    if not callable(function):
        raise ValueError(f"{FIELD}: {module}:{name} must be a function, got {type(function).__name__}")

    def ask(answers: list[Answer]) -> object:
        scores = function(list(answers))
        return scores.tolist() if hasattr(scores, "tolist") else scores  # an array or a tensor

    def score(answers: list[Answer]) -> list[float]:
        scores, error = _attempt(partial(ask, answers))
        if error is not None:
            where = _at_fault(ask, answers, error)
            raise ValueError(f"{rule}: raised {_raised(error)} {where}; correct it, {GO_ON}") from error
        return check_scores(scores, len(answers), rule)

    return score


def _attempt(work: Callable[[], object]) -> tuple[object, BaseException | None]:
    """What it gives, or what it raises: all but an interrupt, as a rule is anybody's code."""
    try:
        return work(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


def _at_fault(ask: Callable[[list[Answer]], object], answers: list[Answer], error: BaseException) -> str:
    """Which answer it is that a rule raises `error` for: the first that raises the same when it is asked alone."""
    end = time.monotonic() + SEARCH_LIMIT_S
    for i, answer in enumerate(answers):
        _, alone = _attempt(partial(ask, [answer]))
        if type(alone) is type(error) and _raised(alone) == _raised(error):
            return f"for answer {i + 1} of {len(answers)}"
        if time.monotonic() > end:
            break
    return f"for a list of {len(answers)} answers"


def _raised(error: BaseException) -> str:
    """The exception's kind and text, in one line."""
    try:
        said = one_line(error, 200)
    except Exception:  # an exception of one's own may fail to say what it is
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
