"""Policies against one another before a language model: which answer it prefers, in random order."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rto_fast.judges import GO_ON
from rto_fast.judges.llm.ask import ask_all
from rto_fast.judges.llm.cache import Cache
from rto_fast.judges.llm.client import Client, Failure
from rto_fast.judges.llm.prompts import ask_about, verdict
from rto_fast.training.progress import progress
from rto_fast.training.seeds import derive

TRIAL = ("Yes.", "I do not know.")
"""Answers to ask about before there are any."""


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


def comparisons(
    kind: str, queries: Sequence[str], answers: Mapping[str, Sequence[str]], seed: int
) -> Iterator[Comparison]:
    """Every pair of policies on every prompt whose answers differ; a coin of (seed, pair, prompt) decides who is A."""
    for a, b in combinations(answers, 2):
        for i, query in enumerate(queries):
            first, second = (a, b) if derive(seed, "judge", *sorted((a, b)), i) % 2 == (a < b) else (b, a)
            if answers[a][i] != answers[b][i]:
                question = ask_about(kind, query, answers[first][i], answers[second][i])
                yield Comparison(i, (first, second), question)


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
    asked = list(comparisons(kind, queries, answers, seed))
    replies = ask_all([c.question for c in asked], client.ask, cache, concurrency=concurrency, progress=progress)
    outcomes = {
        (a, b): np.where([x == y for x, y in zip(answers[a], answers[b], strict=True)], 0.5, np.nan)
        for a, b in combinations(answers, 2)
    }
    records: list[dict[str, Any]] = []
    for comparison in asked:
        if (reply := replies.texts.get(comparison.question)) is None:
            continue
        letter = verdict(reply)
        winner = None if letter is None else comparison.policies["AB".index(letter)]
        first, second = comparison.policies
        records.append({"index": comparison.index, "first": first, "second": second, "verdict": winner, "reply": reply})
        for pair in ((first, second), (second, first)):
            if winner is not None and pair in outcomes:
                outcomes[pair][comparison.index] = float(winner == pair[0])
    unreadable = [record["reply"] for record in records if record["verdict"] is None]
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
        counts["first_preferred"] = sum(record["verdict"] == record["first"] for record in records) / judged
    if unreadable:
        counts["unparseable_example"] = unreadable[0][:200]
    if replies.failed:
        counts["failed_example"] = next(iter(replies.failed.values()))
    if asked and not judged:
        shown = [repr(reply[:80]) for reply in unreadable[:1]] + list(replies.failed.values())[:1]
        raise ValueError(
            f"judge: none of {len(asked)} comparisons got a verdict: {len(unreadable)} replies name no winner and "
            f"{counts['failed']} questions failed, e.g. {' and '.join(shown)}; try another --llm.model, or a larger "
            "--llm.max-tokens"
        )
    return Judgement(outcomes, counts, records)


def try_judge(client: Client, query: str, *, cache: Path, say: Callable[[str], None]) -> None:
    """Ask one question, once, as a judge that cannot be asked is better known of before the policies have answered.

    About two made-up answers to `query`; what the cache knows is not asked. ConnectionError, one line, without a reply.
    """
    question = ask_about(client.options.prompt, query, *TRIAL)
    with Cache(cache, client.model, client.settings) as kept:
        if kept.get(question) is not None:
            return
        started = time.monotonic()
        try:
            reply = Client(replace(client.options, retries=0)).ask(question)
        except Failure as failure:
            raise ConnectionError(
                f"judge: {client.model} at {client.host} does not answer: {failure}; {GO_ON}"
            ) from None
        kept.put(question, reply)
    said = verdict(reply)
    say(
        f"The judge answered a trial question in {time.monotonic() - started:.1f} s"
        + (f": {said}" if said else f", without a verdict: {reply[:120]!r}")
    )


def ask_judge(
    client: Client,
    queries: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    *,
    cache: Path,
    seed: int,
    say: Callable[[str], None],
) -> Judgement:
    """Ask about every pair of policies with a progress bar, and say what came of it. Errors as in `judge`."""
    if len(answers) < 2:
        raise ValueError("judge: llm compares answers, and there is one policy; give two or more")
    pairs = len(answers) * (len(answers) - 1) // 2 * len(queries)
    say(f"Asking {client.model} at {client.host} about {pairs} pairs of answers; replies are kept in {cache}")
    with Cache(cache, client.model, client.settings) as kept, progress(pairs, "pair") as bar:
        bar.set_description("judge", refresh=False)
        judgement = judge(
            queries,
            answers,
            client,
            kept,
            kind=client.options.prompt,
            seed=seed,
            concurrency=client.options.concurrency,
            progress=bar.update,
        )
    counts = judgement.counts
    say(
        f"{counts['judged']} judged ({counts['cached']} from the cache), {counts['identical']} identical and tied, "
        f"{counts['unparseable']} without a verdict, {counts['failed']} failed"
        + (f"; the first answer was preferred in {100 * counts['first_preferred']:.0f} %" if counts["judged"] else "")
    )
    for kind, advice in (("unparseable", "left out of the win rates"), ("failed", "asked again by the same command")):
        if counts[kind]:
            say(f"  {kind}: {counts[kind]}, {advice}; the first: {counts[kind + '_example'][:120]!r}")
    if counts["judged"] >= 20 and not 0.2 < counts["first_preferred"] < 0.8:
        say("  this judge goes by the order of the answers more than by the answers; the random order hides that")
    return judgement
