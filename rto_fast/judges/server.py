"""Scores from a reward server over HTTP, in the protocol of OpenRLHF's remote reward models.

    POST url        {"query": [prompt + response, ...], "prompts": [...], "labels": [...], "finished": [...]}
    200             {"rewards": [one finite number per query]}, whatever else beside it

Texts are without special tokens. labels are the rows' right answers ("" where a row has none). finished, an addition
that other servers ignore, says which answers the policy ended itself. A bearer key goes along where the environment
holds RTO_FAST_REWARD_KEY.
"""

import json
import os
import random
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from socket import gaierror
from typing import Any

from rto_fast.config import ScoreConfig
from rto_fast.files.foreign import no_duplicates
from rto_fast.files.text import one_line
from rto_fast.judges import GO_ON, Answer, Scorer, check_scores
from rto_fast.judges.address import Address, read_address
from rto_fast.judges.http_post import Cancel, Reply, TooLarge, post

FIELD = "rto.score.server"
KEY = "RTO_FAST_REWARD_KEY"
CONCURRENT = 8
"""Most requests under way at once."""
LONGEST_WAIT_S = 60.0
"""Most that a server's Retry-After, or the doubling, is waited for."""
HINTS = {
    401: f"set {KEY} to the server's key",
    403: f"set {KEY} to the server's key",
    404: "check the path (usually /get_reward)",
    405: "check the path (usually /get_reward)",
    413: "lower rto.score.batch",
}


def server_scorer(
    url: str, *, timeout: float = 60.0, retries: int = 4, batch: int = 64, backoff: float = 1.0
) -> Scorer:
    """A scorer that asks the reward server at `url` for at most `batch` answers at a time, 8 requests at once.

    timeout  seconds for one request, from connecting to the last byte of the answer
    retries  further attempts after a connection that fails, a time-out, 408, 429 and 5xx; before attempt n waits
             backoff * 2^(n - 1) seconds, less up to a half at random, or what Retry-After says, at most a minute

    Answers of the server are not trusted: at most 1 MiB and 1 KiB per score, strict JSON, exactly one finite number per
    answer. Redirects are not followed and proxies are not used. Credentials in `url` are sent (basic) and never shown.
    Raises ValueError, one sentence naming rto.score.server, for a url that is none, and from the scorer for an answer
    that is none; OSError from the scorer when it gives up.
    """
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{KEY}: the key in the environment holds characters that no header can")
    address = read_address(url, FIELD, "http://127.0.0.1:5000/get_reward", key)
    shown = f"{FIELD}: {address.shown}"
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rto_fast"}
    if address.authorization is not None:
        headers["Authorization"] = address.authorization
    ScoreConfig(server=url, timeout=timeout, retries=retries, batch=batch)  # it says what cannot be
    # a generator of its own: what a run draws does not depend on how often a server failed
    jitter = random.Random()

    def ask(answers: list[Answer], cancel: Cancel) -> list[float]:
        request = {
            "query": [a.prompt + a.response for a in answers],
            "prompts": [a.prompt for a in answers],
            "labels": [a.reference or "" for a in answers],
            "finished": [a.finished for a in answers],
        }
        body = json.dumps(request).encode()
        for attempt in range(retries + 1):
            try:
                limit = (1 << 20) + 1024 * len(answers)
                reply = post(address.url, body, headers, timeout=timeout, max_bytes=limit, cancel=cancel)
            except TooLarge:
                raise ValueError(
                    f"{shown} answered with more than {limit} bytes; is it a reward server? {GO_ON}"
                ) from None
            except (OSError, HTTPException) as error:
                problem, asked = _problem(error, timeout, address), 0.0
            else:
                if reply.status == 200:
                    return _rewards(reply.body, len(answers), address)
                problem, asked = f"status {reply.status}{_said(reply, address)}", _retry_after(reply.retry_after)
                if reply.status not in (408, 429) and reply.status < 500:
                    hint = HINTS.get(reply.status, "correct the server or the url")
                    raise ValueError(f"{shown} refuses with {problem}; {hint}; {GO_ON}")
            own = backoff * 2**attempt * jitter.uniform(0.5, 1.0)
            if attempt < retries and cancel.requested.wait(min(max(own, asked), LONGEST_WAIT_S)):
                break
        tried = f"{attempt + 1} attempt" + "s" * (attempt > 0)
        raise OSError(f"{shown} gave no scores in {tried} ({problem}); start it again; {GO_ON}")

    def score(answers: list[Answer]) -> list[float]:
        if not answers:
            return []
        cancel = Cancel()
        parts = [answers[i : i + batch] for i in range(0, len(answers), batch)]
        with ThreadPoolExecutor(min(CONCURRENT, len(parts)), thread_name_prefix="reward-server") as pool:
            futures = [pool.submit(ask, part, cancel) for part in parts]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                # after an error or an interrupt the rest would be asked in vain, and must not hold it up
                for future in futures:
                    future.cancel()
                cancel()
        return [s for future in futures for s in future.result()]

    return score


def _rewards(body: bytes, count: int, address: Address) -> list[float]:
    def refuse(constant: str) -> float:
        raise ValueError(f"it holds {constant}, which is no number in JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return no_duplicates(pairs, address.hide)  # before the key is shortened: half of a secret is not known as one

    shown, correct = f"{FIELD}: {address.shown}", f"correct the server; {GO_ON}"
    try:
        answer = json.loads(body.decode(), parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else one_line(address.hide(str(error)), 120)
        raise ValueError(f"{shown} answered no JSON ({reason}); {correct}") from None
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        got = _form(answer, address)
        raise ValueError(f'{shown} must answer {{"rewards": [{count} numbers]}}, got {got}; {correct}')
    if any(isinstance(r, bool) for r in rewards):
        raise ValueError(f"{shown} answered true or false for a number; {correct}")
    return check_scores(rewards, count, shown, address.hide)


def _form(answer: object, address: Address) -> str:
    if not isinstance(answer, dict):
        return {list: "a list", str: "a string", type(None): "null"}.get(type(answer), "a number")
    if "rewards" in answer:
        return "rewards that are not a list"
    return f"an object with the keys {', '.join(repr(address.hide(k)[:20]) for k in list(answer)[:5]) or '(none)'}"


def _problem(error: Exception, timeout: float, address: Address) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, gaierror):
        return "unknown host"
    return one_line(address.hide(str(error)), 200) or type(error).__name__


def _said(reply: Reply, address: Address) -> str:
    """What an error's body says, in one short line."""
    text = address.hide(reply.body.decode(errors="replace"))[:2000]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:160]
    return f": {text}" if text else ""


def _retry_after(value: str | None) -> float:
    """Seconds, from a number of them or a date; 0 for what is neither."""
    with suppress(ValueError):
        return max(0.0, float(value or 0))
    with suppress(ValueError):
        at = parsedate_to_datetime(value or "")
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0
