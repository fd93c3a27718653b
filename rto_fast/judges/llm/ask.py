"""Many questions to the judge at once, from the cache where it has been asked before."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rto_fast.judges.llm.cache import Cache
from rto_fast.judges.llm.client import Failure

_PATIENCE = {"server": 3, "question": 20}
"""Failures in a row, by whose they are, after which no question would succeed; at least as many as are asked at once.

One question may crash a server, and one may be too long for it; a mistake in the settings ends it all at once.
"""


@dataclass(frozen=True)
class Replies:
    texts: dict[str, str]
    """Reply by question"""
    failed: dict[str, str]
    """Reason by question"""
    cached: int
    """How many of the replies were there already."""


def ask_all(
    questions: Sequence[str],
    ask: Callable[[str], str],
    cache: Cache,
    *,
    concurrency: int,
    progress: Callable[[int], None],
) -> Replies:
    """Every question once, `concurrency` at a time; a reply is on disk before the next is looked at.

    ask(question) is called in threads and raises Failure; progress(n) is called when n more questions are dealt with.
    One that fails is left out and asked again by the next call. ConnectionError, one line, when none would succeed:
    a refusal that is about the settings, as many failures in a row as `_PATIENCE` has, or no reply at all by the
    server's fault.
    """
    questions = list(dict.fromkeys(questions))
    texts = {q: reply for q in questions if (reply := cache.get(q)) is not None}
    failed: dict[str, str] = {}
    cached = len(texts)
    progress(cached)
    todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    # bounded, so that no more than a few questions are asked after the one that ends it all
    done: queue.Queue[tuple[str, str | BaseException]] = queue.Queue(concurrency)
    missing = [q for q in questions if q not in texts]
    workers = min(concurrency, len(missing))
    for item in (*missing, *[None] * workers):
        todo.put(item)
    stop = threading.Event()

    def work() -> None:
        for question in iter(todo.get, None):
            if stop.is_set():
                return
            try:
                done.put((question, ask(question)))
            except BaseException as error:
                done.put((question, error))

    # daemons: a run that stops does not wait for replies that nobody will read
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    streak, only_the_server = 0, True
    try:
        while len(texts) + len(failed) < len(questions):
            question, said = done.get()
            if isinstance(said, str):
                cache.put(question, said)
                texts[question], streak = said, 0
            elif not isinstance(said, Failure):
                raise RuntimeError("ask_all: the threads that ask the judge died; see the trace above") from said
            else:
                failed[question], streak = str(said), streak + 1
                only_the_server = only_the_server and said.whose == "server"
                patience = max(_PATIENCE[said.whose], concurrency) if said.whose in _PATIENCE else 1
                if streak >= patience or (only_the_server and len(failed) == len(questions)):
                    raise ConnectionError(
                        f"judge: {said}; {len(texts)} of {len(questions)} questions are answered and kept in "
                        f"{cache.path}, the same command asks the rest"
                    )
            progress(1)
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                question, said = done.get_nowait()
                if isinstance(said, str):
                    cache.put(question, said)
    return Replies(texts, failed, cached)
