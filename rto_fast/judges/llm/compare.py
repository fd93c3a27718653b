"""Policies against one another before a language model: which answer it prefers, in random order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rto_fast.judges.llm.ask import ask_all
from rto_fast.judges.llm.cache import Cache
from rto_fast.judges.llm.client import Client
from rto_fast.judges.llm.prompts import ask_about, verdict
from rto_fast.training.seeds import derive


@dataclass(frozen=True)
class Comparison:
    """Two answers to prompt `index`, in the order in which the judge reads them."""

    index: int
    policies: tuple[str, str]
    question: str


@dataclass(frozen=True)
class Judgement:
    outcomes: dict[tuple[str, str], np.ndarray]
    """(prompts,) of each pair of policies: 1 where the first won, 0 where the second did, 0.5 where both answers are
    the same text (not asked), NaN where there is no verdict."""
    counts: dict[str, Any] = field(default_factory=dict)
    """comparisons, identical, judged, cached, unparseable, failed, first_preferred (the share of A); examples of what
    could not be read and of what failed."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """{"index", "first", "second", "verdict": a policy or null, "reply"} of each comparison that was answered."""


def comparisons(kind: str, queries: Sequence[str], answers: Mapping[str, Sequence[str]], seed: int) -> list[Comparison]:
    """Every pair of policies on every prompt whose answers differ; a coin of (seed, pair, prompt) decides who is A."""
    out = []
    for a, b in combinations(answers, 2):
        for i, query in enumerate(queries):
            first, second = (a, b) if derive(seed, "judge", *sorted((a, b)), i) % 2 == (a < b) else (b, a)
            if answers[a][i] != answers[b][i]:
                question = ask_about(kind, query, answers[first][i], answers[second][i])
                out.append(Comparison(i, (first, second), question))
    return out


def judge(
    queries: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    client: Client,
    cache: Cache,
    *,
    kind: str,
    seed: int,
    concurrency: int,
    progress: Callable[[int], None],
) -> Judgement:
    """Ask about every pair of policies; answers[policy][i] is its text for queries[i].

    Replies without a verdict are counted and left out of `outcomes`, never ties. ConnectionError when the judge cannot
    be asked, ValueError when none of its replies names a winner; what it has answered stays in the cache either way.
    """
    asked = comparisons(kind, queries, answers, seed)
    replies = ask_all([c.question for c in asked], client.ask, cache, concurrency=concurrency, progress=progress)
    outcomes = {
        (a, b): np.where([x == y for x, y in zip(answers[a], answers[b], strict=True)], 0.5, np.nan)
        for a, b in combinations(answers, 2)
    }
    records, unreadable, firsts = [], [], 0
    for comparison in asked:
        reply = replies.texts.get(comparison.question)
        if reply is None:
            continue
        letter = verdict(reply)
        winner = None if letter is None else comparison.policies["AB".index(letter)]
        first, second = comparison.policies
        records.append({"index": comparison.index, "first": first, "second": second, "verdict": winner, "reply": reply})
        if winner is None:
            unreadable.append(reply)
            continue
        firsts += letter == "A"
        for pair in ((first, second), (second, first)):
            if pair in outcomes:
                outcomes[pair][comparison.index] = float(winner == pair[0])
    judged = len(records) - len(unreadable)
    counts: dict[str, Any] = {
        "comparisons": len(queries) * len(outcomes),
        "identical": len(queries) * len(outcomes) - len(asked),
        "judged": judged,
        "cached": replies.cached,
        "unparseable": len(unreadable),
        "failed": len(asked) - len(records),
    }
    if judged:
        counts["first_preferred"] = firsts / judged
    if unreadable:
        counts["unparseable_example"] = unreadable[0][:200]
    if replies.failed:
        counts["failed_example"] = next(iter(replies.failed.values()))
    if asked and not judged:
        what = f"e.g. {unreadable[0][:80]!r}" if unreadable else f"e.g. {counts['failed_example']}"
        raise ValueError(
            f"judge: none of {len(asked)} comparisons got a verdict: {len(unreadable)} replies name no winner and "
            f"{counts['failed']} questions failed, {what}; try another --llm.model, or a larger --llm.max-tokens"
        )
    return Judgement(outcomes, counts, records)
