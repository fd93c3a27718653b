"""The judge's client against a real server that does everything wrong."""

import base64
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from rto_fast.judges.llm.client import MAX_BODY, Client, Failure
from rto_fast.judges.llm.options import LLMOptions
from tests.judges.faulty_server import (
    bomb,
    breaks_off,
    drip,
    dripping_error,
    dripping_head,
    endless_error,
    flood,
    packed,
    serving,
)

pytest.importorskip("openai", reason='needs the openai package: pip install "rto_fast[judge]"')
KEY = "sk-most-secret"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "RTO_FAST_JUDGE_MODEL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def client(url: str | None, **options) -> Client:
    options = {"model": "m", "temperature": 0.0, "max_tokens": 16, "retries": 0, "timeout": 5.0, **options}
    return Client(LLMOptions(url=url, **options))


def test_what_is_sent():
    with serving(lambda handler, prompt, number: handler.say(f"you said {prompt}")) as server:
        assert client(server.url).ask("hé") == "you said hé"
        assert client(server.url, temperature=None, max_tokens=None).ask("x") == "you said x"
    first, second = server.requests
    assert first["path"] == "/v1/chat/completions"
    assert first["headers"]["authorization"] == f"Bearer {KEY}"
    messages = [{"role": "user", "content": "hé"}]
    assert first["body"] == {"model": "m", "messages": messages, "temperature": 0.0, "max_tokens": 16}
    assert second["body"] == {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_a_key_wins_over_the_urls_name_and_password(monkeypatch):
    """As a reward server's does."""
    with serving(lambda handler, prompt, number: handler.say("A")) as server:
        url = server.url.replace("http://", "http://me:my-word@")
        client(url).ask("x")
        monkeypatch.delenv("OPENAI_API_KEY")
        client(url).ask("x")
    pair = base64.b64encode(b"me:my-word").decode()
    assert [r["headers"]["authorization"] for r in server.requests] == [f"Bearer {KEY}", f"Basic {pair}"]


def test_url_and_model_come_from_the_environment(monkeypatch):
    with serving(lambda handler, prompt, number: handler.say("A")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("RTO_FAST_JUDGE_MODEL", "from-the-environment")
        monkeypatch.delenv("OPENAI_API_KEY")  # a local server wants none
        assert client(None, model=None).ask("x") == "A"
    assert server.requests[0]["body"]["model"] == "from-the-environment"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(status):
    def answer(handler, prompt, number):
        handler.say("A") if number == 2 else handler.fail(status, "busy")

    with serving(answer) as server:
        assert client(server.url, retries=2).ask("x") == "A"
    assert len(server.requests) == 3


def test_retry_after_is_heeded():
    def answer(handler, prompt, number):
        handler.say("A") if number else handler.fail(429, "slow down", Retry_After="2")

    started = time.monotonic()
    with serving(answer) as server:
        assert client(server.url, retries=1).ask("x") == "A"
    assert time.monotonic() - started >= 1.9


@pytest.mark.parametrize("fault", [drip, flood, breaks_off])
def test_a_reply_that_never_comes_whole_is_asked_for_again_and_then_given_up(fault):
    def answer(handler, prompt, number):
        handler.say("A") if number else fault(handler, prompt, number)

    with serving(answer) as server:
        assert client(server.url, retries=1, timeout=1.0).ask("x") == "A"
    with serving(fault) as server, pytest.raises(Failure) as failure:
        client(server.url, timeout=1.0).ask("x")
    assert failure.value.whose == "server"
    text = {drip: "no whole reply within 1 s", flood: f"more than {MAX_BODY // 2**20} MiB"}.get(fault, "no connection")
    assert text in str(failure.value)


@pytest.mark.parametrize("fault", [drip, dripping_error, dripping_head])
def test_a_reply_that_drips_is_cut_off_at_the_deadline(fault):
    with serving(fault) as server:
        started = time.monotonic()
        with pytest.raises(Failure, match="no whole reply within 0.5 s"):
            client(server.url, timeout=0.5).ask("x")
        assert time.monotonic() - started < 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads this process's memory from /proc")
@pytest.mark.parametrize("fault", [endless_error, bomb, flood])
def test_no_reply_takes_the_machine(fault):
    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    packed()  # beforehand
    with serving(fault) as server:
        asked = client(server.url, timeout=20.0)
        before, most, over = memory(), 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not over.wait(0.005):
                most = max(most, memory())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(Failure, match="^(status 500|a reply)"):
                    asked.ask("x")
                assert time.monotonic() - started < 10
        finally:
            over.set()
            watching.join()
    assert most - before < 100 * 2**20, f"{(most - before) / 2**20:.0f} MiB more"


def test_a_redirect_is_not_followed():
    with serving(lambda handler, prompt, number: handler.send(307, b"{}", Location="/elsewhere")) as server:
        with pytest.raises(Failure, match="status 307.*check --llm.url, redirects are not followed") as failure:
            client(server.url).ask("x")
    assert failure.value.whose == "settings" and len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>gateway</html>", "not JSON: '<html>gateway"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"choices": [], "choices": [{"message": {"content": "A"}}]}', "not JSON"),
        (b"{}", "without choices"),
        (b'{"choices": []}', "without choices"),
        (b'{"choices": [{"message": "A"}]}', "without choices"),
        (b'[1, "A"]', "without choices"),
        (b'{"choices": [{"message": {"content": [1]}}]}', "is no text"),
    ],
)
def test_nonsense_with_status_200(body, text):
    with serving(lambda handler, prompt, number: handler.send(200, body)) as server:
        with pytest.raises(Failure, match=text) as failure:
            client(server.url).ask("x")
    assert failure.value.whose == "server"


def test_a_refusal_to_speak_is_an_empty_reply():
    with serving(lambda handler, prompt, number: handler.say(None)) as server:
        assert client(server.url).ask("x") == ""


@pytest.mark.parametrize(
    ("status", "whose", "hint"),
    [
        (400, "question", ""),
        (413, "question", ""),
        (401, "settings", "check OPENAI_API_KEY"),
        (403, "settings", "check OPENAI_API_KEY"),
        (404, "settings", "check --llm.url"),
        (429, "server", ""),
        (500, "server", ""),
    ],
)
def test_a_status_says_whose_fault_it_is_in_one_line(status, whose, hint):
    with serving(lambda handler, prompt, number: handler.fail(status, "no\nway")) as server:
        with pytest.raises(Failure) as failure:
            client(server.url).ask("x")
    assert failure.value.whose == whose
    assert f"status {status}, 'no way'" in str(failure.value) and hint in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_key_stays_out_of_messages_and_replies():
    def answer(handler, prompt, number):
        said = handler.headers["Authorization"]
        handler.fail(401, f"wrong key {said}") if prompt == "fail" else handler.say(f"I saw {said}")

    with serving(answer) as server:
        asked = client(server.url)
        assert asked.ask("x") == "I saw Bearer ***"
        with pytest.raises(Failure) as failure:
            asked.ask("fail")
        assert KEY not in str(failure.value) and "***" in str(failure.value)
        with_user = server.url.replace("http://", "http://me:password@")
        assert client(with_user).host == server.url


def test_no_part_of_the_url_is_shown(monkeypatch):
    def echo(handler, prompt, number):
        said = f"{handler.path} {handler.headers['Authorization']} user-hunter pass@hunter frag-hunter"
        act = [lambda: handler.fail(400, said), lambda: handler.say(said), lambda: handler.send(200, said.encode())]
        act[number]()

    with serving(echo) as server:
        url = server.url.replace("http://", "http://user-hunter:pass%40hunter@") + "?token=tok-hunter#frag-hunter"
        asked = client(url)
        assert asked.host == server.url + "?***"
        with pytest.raises(Failure, match="status 400") as refused:
            asked.ask("x")
        said = asked.ask("x")
        with pytest.raises(Failure, match="not JSON") as broken:
            asked.ask("x")
    assert [r["path"] for r in server.requests] == ["/v1/chat/completions?token=tok-hunter"] * 3
    for text in (str(refused.value), said, str(broken.value)):
        assert "/v1/chat/completions?***" in text and "hunter" not in text and KEY not in text


def test_an_error_that_nests_deeply_is_one_line():
    body = b'{"error": ' * 5000 + b'"deep"' + b"}" * 5000
    with serving(lambda handler, prompt, number: handler.send(400, body)) as server:
        with pytest.raises(Failure, match="^status 400") as failure:
            client(server.url).ask("x")
    assert len(str(failure.value)) < 300


def test_a_silent_server_and_one_that_is_not_there():
    with serving(lambda handler, prompt, number: time.sleep(3)) as server:
        with pytest.raises(Failure, match="no whole reply within 0.5 s") as failure:
            client(server.url, timeout=0.5).ask("x")
        url = server.url
    assert failure.value.whose == "server"
    with pytest.raises(Failure, match="no connection .*Refused"):
        client(url).ask("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000/v1"}, "llm.url: wanted a url like http://localhost:8000/v1, got 'localhost:8000/v1'"),
        ({"url": "ftp://x/v1"}, "llm.url"),
        ({"url": "http://me:hunter2#@x/v1"}, "llm.url: .* a host or port that cannot be read"),
        ({"url": "x/v1?token=hunter2"}, "llm.url: .* got one without http:// and a host"),
        ({"url": "http://x/v1", "model": None}, "llm.model: no judge is named; use --llm.model"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        client(**options)
    assert "hunter" not in str(caught.value)


def test_openai_itself_wants_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        client(None)
