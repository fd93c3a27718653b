"""A reward server and a judge are asked before anything is trained or answered, and what is secret in their URL and
key is never printed or written down, also where they repeat it."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.attack.command import Ended, Outcome, copied, done, python, refused
from tests.fuzz.place import base
from tests.judges import faulty, faulty_server

KEY = "key-hunter"
PAIR = base64.b64encode(b"user-hunter:pass@hunter").decode()
"""Of the URL's name and password, as the header has them."""
SAID = "user-hunter pass@hunter pass%40hunter tok-hunter frag-hunter"
KEYS = ("RTO_FAST_REWARD_KEY", "OPENAI_API_KEY")


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    yield from _rewards(shared, own)
    yield from _mistakes(shared, own)
    yield from _paid(shared, own)
    yield from _judges(shared, own)


def _end(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def _secret(url: str) -> str:
    return url.replace("http://", "http://user-hunter:pass%40hunter@") + "?token=tok-hunter&tok-hunter#frag-hunter"


def _shown(url: str) -> str:
    return url.replace("http://", "http://***@") + "?***"


def _silent(seen: Ended, *folders: Path) -> dict[str, bool]:
    """No secret was printed, and none is in a file."""
    files = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    secrets = ("hunt", "pass%", PAIR[:12])  # a part gives away enough
    return {
        "no secret is printed": not any(secret in seen.text for secret in secrets),
        "no secret is in a file": not any(secret.encode() in content for secret in secrets for content in files),
    }


def _heard(handler: Any) -> str:
    """All that a server was told, as it would tell it to others."""
    return f"{handler.path} {SAID} {handler.headers['Authorization']} {handler.headers}"


def _told(status: int, form: str, **headers: str) -> Callable:
    """Answers with a text in which HEARD stands for all that is secret."""

    def act(handler: Any, asked: object) -> None:
        heard = json.dumps(_heard(handler))[1:-1] if form.startswith("{") else _heard(handler)
        faulty.reply(handler, status, form.replace("HEARD", heard).encode(), **headers)

    return act


REWARDS: dict[str, tuple[Callable | None, str]] = {
    "is dead": (None, "gave no scores in 1 attempt (connection refused); start it again"),
    "answers 401": (_told(401, "HEARD"), "set RTO_FAST_REWARD_KEY to the server's key"),
    "answers 500": (_told(500, "HEARD"), "gave no scores in 1 attempt (status 500: /get_reward?***"),
    "answers a page": (_told(200, "<html>HEARD</html>"), "answered no JSON"),
    "answers words for numbers": (_told(200, '{"rewards": ["HEARD"]}'), "every score must be a finite number"),
    "answers other keys": (_told(200, '{"HEARD": [1]}'), "got an object with the keys"),
    "answers a key twice": (_told(200, '{"rewards": [1], "HEARD": 1, "HEARD": 2}'), "appears twice in one object"),
    "answers two scores": (faulty.text('{"rewards": [1, 2]}'), "wanted 1 scores, one per answer, got 2"),
    "answers NaN": (faulty.text('{"rewards": [NaN]}'), "it holds NaN"),
    "speaks no HTTP": (lambda handler, asked: handler.wfile.write(SAID.encode() + b"\r\n"), "gave no scores in 1"),
    "sends elsewhere": (_told(302, "HEARD", Location="http://127.0.0.1:9/tok-hunter"), "refuses with status 302"),
    "is silent": (lambda handler, asked: time.sleep(4), "gave no scores in 1 attempt (no whole answer within 1 s)"),
}


def _rewards(shared: Path, own: Path) -> Iterator[Outcome]:
    def asked(*acts: Callable, key: str = KEY, dead: bool = False) -> tuple[Ended, str, list]:
        with faulty.serving(*acts) as server:
            if dead:
                _end(server)
            words = [*base(shared, own / "run"), "--stages", "sft", "ppo", "--rto.score.server", _secret(server.url)]
            words += ["--preflight-only", "--rto.score.timeout", "1" if acts else "60"]
            seen = python("rto_fast.train", *words, where=own, RTO_FAST_REWARD_KEY=key, NO_PROXY="*")
            return seen, _shown(server.url), server.requests

    for key, header in ((KEY, f"Bearer {KEY}"), ("", f"Basic {PAIR}")):
        seen, shown, requests = asked(key=key)
        wanted = done(seen, f"{shown} gave ", " for an example  (a finite number)") | _silent(seen)
        asked_well = [(path, headers["Authorization"]) for path, headers, _ in requests]
        wanted["it was asked once, with all that it wants"] = asked_well == [
            ("/get_reward?token=tok-hunter&tok-hunter", header)
        ]
        yield Outcome(f"control: preflight of a reward server that answers, {header.split()[0]}", seen, wanted)
    for name, (act, says) in REWARDS.items():
        seen, shown, requests = asked(*[act] if act else [], dead=act is None)
        wanted = refused(seen, "rto.score.server: http://127.0.0.1:", says) | _silent(seen)
        wanted["it was asked once"] = len(requests) == (act is not None)
        yield Outcome(f"preflight of a reward server that {name}", seen, wanted)
    seen, _, _ = asked(_told(401, "HEARD"), key="")
    wanted = refused(seen, "rto.score.server: ", "status 401") | _silent(seen)
    yield Outcome("preflight of a reward server that repeats the header of a name and password", seen, wanted)


def _mistakes(shared: Path, own: Path) -> Iterator[Outcome]:
    """Secrets in words that are no URL, or no flag."""
    for flag, url in (
        ("--rto.score.server", "http://user-hunter:pass/hunter@127.0.0.1:9/get_reward"),
        ("--rto.score.server", "gopher://user-hunter:pass-hunter@127.0.0.1:9/?token=tok-hunter"),
        ("--rto.score.serve", "http://user-hunter:pass-hunter@127.0.0.1:9/?token=tok-hunter#frag-hunter"),
    ):
        seen = python("rto_fast.train", *base(shared, own / "run"), "--stages", "sft", "ppo", flag, url, where=own)
        yield Outcome(f"{flag} {url}", seen, refused(seen, flag.strip("-")) | _silent(seen))


def _paid(shared: Path, own: Path) -> Iterator[Outcome]:
    """Whole trainings: paid by a good server, and not begun with a dead one."""
    for good in (True, False):
        run = own / f"paid-{good}"
        with faulty.serving() as server:
            if not good:
                _end(server)
            words = [*base(shared, run), "--stages", "sft", "ppo", "--rto.score.server", _secret(server.url)]
            seen = python("rto_fast.train", *words, where=own, RTO_FAST_REWARD_KEY=KEY, NO_PROXY="*")
        if good:
            wanted = done(seen, "Finished in") | {"many were asked": len(server.requests) > 2} | _silent(seen, run)
        else:
            wanted = refused(seen, "(connection refused)") | _silent(seen) | {"no run folder": not run.exists()}
        yield Outcome(f"a training paid by a {'good' if good else 'dead'} server", seen, wanted)


JUDGES: dict[str, tuple[Callable | None, str]] = {
    "is dead": (None, "no connection (ConnectionRefusedError"),
    "answers 401": (lambda handler, prompt, number: handler.fail(401, _heard(handler)), "check OPENAI_API_KEY"),
    "answers 500": (lambda handler, prompt, number: handler.fail(500, _heard(handler)), "status 500, '"),
    "answers a page": (lambda handler, prompt, number: handler.send(200, _heard(handler).encode()), "is not JSON: '"),
    "answers nothing": (lambda handler, prompt, number: handler.send(200, b"{}"), "without choices[0].message.content"),
    "sends elsewhere": (
        lambda handler, prompt, number: handler.send(307, b"{}", Location="/tok-hunter"),
        "redirects are not followed",
    ),
    "is silent": (lambda handler, prompt, number: time.sleep(4), "no whole reply within 1 s"),
}


def _judges(shared: Path, own: Path) -> Iterator[Outcome]:
    def asked(answer: Callable, name: str, named: bool = True, dead: bool = False) -> tuple[Ended, Path, list]:
        run = copied(shared, own / name)
        with faulty_server.serving(answer) as server:
            if dead:
                _end(server)
            words = ["--run", str(run), "--num-prompts", "2", "--judge", "llm", "--llm.model", "m", "--device", "cpu"]
            words += ["--llm.timeout", "60" if name == "well" else "1"]
            words += ["--llm.url", _secret(server.url)] if named else []
            variables = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": _secret(server.url), "NO_PROXY": "*"}
            seen = python("rto_fast.evaluate", *words, where=own, **variables)
            return seen, run, server.requests

    def well(handler: Any, prompt: str, number: int) -> None:
        handler.say(f"Comparison: {_heard(handler)}\nMore helpful: A")

    seen, run, requests = asked(well, "well")
    wanted = done(seen, "The judge answered a trial question in ", "Finished in") | _silent(seen, run)
    paths = {request["path"] for request in requests}
    wanted["with the query that it wants"] = paths == {"/v1/chat/completions?token=tok-hunter&tok-hunter="}
    yield Outcome("control: a judge that answers and repeats all that it was told", seen, wanted)
    for number, (name, (answer, says)) in enumerate(JUDGES.items()):
        seen, run, requests = asked(answer or well, f"judged-{number}", named=number % 2 == 0, dead=answer is None)
        wanted = refused(seen, "judge: m at http://127.0.0.1:", "does not answer: ", says) | _silent(seen, run)
        wanted["it was asked once, before the policies"] = (
            len(requests) == (answer is not None) and "Asking" not in seen.text
        )
        yield Outcome(f"a judge that {name}", seen, wanted)
