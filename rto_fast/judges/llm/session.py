"""The language-model judge as the command line runs it: settings in, outcomes out, and what a person should know."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rto_fast.judges.llm.cache import Cache
from rto_fast.judges.llm.client import Client, Failure
from rto_fast.judges.llm.compare import Judgement, judge
from rto_fast.judges.llm.options import LLMOptions
from rto_fast.judges.llm.prompts import ask_about, verdict
from rto_fast.training.progress import progress

TRIAL = ("Yes.", "I do not know.")
"""Answers to ask about before there are any."""


def try_judge(options: LLMOptions, client: Client, query: str, *, cache: Path, say: Callable[[str], None]) -> None:
    """Ask one question, once, as a judge that cannot be asked is better known of before the policies have answered.

    About two made-up answers to `query`; what the cache knows is not asked. ConnectionError, one line, without a reply.
    """
    question = ask_about(options.prompt, query, *TRIAL)
    with Cache(cache, client.model, client.settings) as kept:
        if kept.get(question) is not None:
            return
        started = time.monotonic()
        try:
            reply = Client(replace(options, retries=0)).ask(question)
        except Failure as failure:
            raise ConnectionError(
                f"judge: {client.model} at {client.host} does not answer: {failure}; the same command then goes on"
            ) from None
        kept.put(question, reply)
    said = verdict(reply)
    say(
        f"The judge answered a trial question in {time.monotonic() - started:.1f} s"
        + (f": {said}" if said else f", without a verdict: {reply[:120]!r}")
    )


def ask_judge(
    options: LLMOptions,
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
            kind=options.prompt,
            seed=seed,
            concurrency=options.concurrency,
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
