"""The reward server's client against real connections, for each way in which a server can fail."""

import email.utils
import random
import socket
import threading
import time

import pytest

from rto_fast.judges import Answer
from rto_fast.judges.server import KEY, server_scorer
from tests.judges.faulty import reply, scores, serving, status, text

FAST = dict(timeout=5.0, retries=2, backoff=0.01)
ANSWERS = [Answer("ab", "c" * i, finished=i % 2 == 0, reference=str(i) if i else None) for i in range(7)]
LENGTHS = [float(2 + i) for i in range(7)]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def drop(handler, asked):
    """Hangs up in the middle of the answer."""
    reply(handler, 200, b'{"rewards": [1, 2', length=500)


def sleep(handler, asked):
    time.sleep(1.0)


def drip(handler, asked):
    """Something every 0.1 s, so that no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(30):
            handler.wfile.write(b" ")
            time.sleep(0.1)
    except OSError:
        return


def drip_header(handler, asked):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    try:
        for i in range(30):
            handler.wfile.write(b"X-%d: x\r\n" % i)
            time.sleep(0.1)
    except OSError:
        return


def huge(handler, asked):
    """Never ends, without telling its length."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        return


def test_answers_go_out_in_batches_and_come_back_in_order():
    with serving() as server:
        assert server_scorer(server.url, batch=2, **FAST)(ANSWERS) == LENGTHS
    assert sorted(len(asked["query"]) for _, _, asked in server.requests) == [1, 2, 2, 2]
    path, headers, asked = min(server.requests, key=lambda r: r[2]["query"])
    assert path == "/get_reward" and headers["Content-Type"] == "application/json"
    assert asked == {
        "query": ["ab", "abc"],
        "prompts": ["ab", "ab"],
        "labels": ["", "1"],
        "finished": [True, False],
    }
    assert "Authorization" not in headers


def test_no_answers_ask_nothing():
    with serving() as server:
        assert server_scorer(server.url, **FAST)([]) == []
    assert server.requests == []


def test_requests_are_under_way_together():
    together = threading.Barrier(4, timeout=5)

    def meet(handler, asked):
        together.wait()
        scores(handler, asked)

    with serving(*[meet] * 4) as server:
        assert server_scorer(server.url, batch=2, **FAST)(ANSWERS) == LENGTHS


@pytest.mark.parametrize("fault", [status(500), status(503, b"busy"), status(408), drop, status(502)])
def test_a_passing_fault_is_tried_again(fault):
    with serving(fault, fault) as server:
        assert server_scorer(server.url, **FAST)(ANSWERS) == LENGTHS
    assert len(server.requests) == 3


@pytest.mark.parametrize("dated", [False, True])
def test_429_waits_as_long_as_it_is_told(dated):
    # dates have whole seconds
    value = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "0.4"
    with serving(status(429, Retry_After=value)) as server:
        started = time.monotonic()
        assert server_scorer(server.url, **FAST)(ANSWERS) == LENGTHS
        assert 0.4 <= time.monotonic() - started < 4


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "", "Mon, 99 Foo 2026"])
def test_a_retry_after_that_cannot_be_read_is_none(value):
    with serving(status(429, Retry_After=value)) as server:
        assert server_scorer(server.url, **FAST)(ANSWERS) == LENGTHS


@pytest.mark.parametrize("slow", [sleep, drip, drip_header])
def test_slow_is_a_time_out_and_tried_again(slow):
    with serving(slow) as server:
        started = time.monotonic()
        assert server_scorer(server.url, timeout=0.3, retries=1, backoff=0.01)(ANSWERS) == LENGTHS
        assert time.monotonic() - started < 0.9


def test_down_gives_up_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        url = f"http://user:hunter2@127.0.0.1:{taken.getsockname()[1]}/get_reward?token=hunter2"
        with pytest.raises(OSError, match="^rto.score.server: http://127.0.0.1:") as caught:
            server_scorer(url, **FAST)(ANSWERS)
    assert "gave no scores in 3 attempts (connection refused); start it again; the same command" in str(caught.value)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault, problem",
    [
        (status(500, b"out of\nmemory"), "status 500: out of memory"),
        (drop, "the answer ended 483 bytes early"),
        (drip, "no whole answer within 0.3 s"),
        (lambda handler, asked: handler.wfile.write(b"SSH-2.0-x\r\n"), "SSH-2.0-x"),
        (lambda handler, asked: None, "closed connection without response"),
    ],
)
def test_a_lasting_fault_is_named(fault, problem):
    with serving(fault, fault, scores) as server:
        with pytest.raises(OSError, match="rto.score.server: .* gave no scores in 2 attempts") as caught:
            server_scorer(server.url, timeout=0.3, retries=1, backoff=0.01)(ANSWERS)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "body, message",
    [
        ('{"rewards": [1, 2, 3]}', "wanted 7 scores, one per answer, got 3"),
        ('{"rewards": [1, 2, NaN, 4, 5, 6, 7]}', "answered no JSON .it holds NaN"),
        ('{"rewards": [1, 2, -Infinity, 4, 5, 6, 7]}', "it holds -Infinity"),
        ('{"rewards": [1, 2, 1e999, 4, 5, 6, 7]}', "a finite number, got inf for answer 3 of 7"),
        ('{"rewards": [1, 2, 1%s, 4, 5, 6, 7]}' % ("0" * 400), "for answer 3 of 7"),
        ('{"rewards": [1, 2, 1%s, 4, 5, 6, 7]}' % ("0" * 5000), "answered no JSON"),
        ('{"rewards": [1, 2, "3", 4, 5, 6, 7]}', "a finite number, got '3' for answer 3 of 7"),
        ('{"rewards": [1, 2, null, 4, 5, 6, 7]}', "a finite number, got None for answer 3 of 7"),
        ('{"rewards": [[1], [2], [3], [4], [5], [6], [7]]}', r"got \[1\] for answer 1 of 7"),
        ('{"rewards": [true, 2, 3, 4, 5, 6, 7]}', "answered true or false for a number"),
        ('{"rewards": 5}', "must answer .*got rewards that are not a list"),
        ('{"scores": [1], "loss": 2}', "got an object with the keys 'scores', 'loss'"),
        ("{}", r"got an object with the keys \(none\)"),
        ("[1, 2, 3, 4, 5, 6, 7]", "got a list"),
        ("3", "got a number"),
        ("null", "got null"),
        ('{"rewards": [1], "rewards": [1, 2, 3, 4, 5, 6, 7]}', "answered no JSON .key 'rewards' appears twice in one"),
        ("", "answered no JSON"),
        ("<html>It works!</html>", "answered no JSON"),
        (b"\xff\xfe\x00", "answered no JSON"),
        ("[" * 200_000, "answered no JSON .it nests too deeply"),
    ],
)
def test_nonsense_is_refused_at_once(body, message):
    with serving(text(body)) as server:
        with pytest.raises(ValueError, match="rto.score.server: .*" + message) as caught:
            server_scorer(server.url, **FAST)(ANSWERS)
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("endless", [True, False])
def test_a_huge_answer_is_not_read(endless):
    with serving(huge if endless else lambda handler, asked: reply(handler, 200, b"[", length=1 << 40)) as server:
        started = time.monotonic()
        with pytest.raises(ValueError, match="rto.score.server: .* answered with more than 1055744 bytes"):
            server_scorer(server.url, **FAST)(ANSWERS)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "code, hint",
    [
        (401, f"set {KEY}"),
        (403, f"set {KEY}"),
        (404, "check the path .usually /get_reward."),
        (413, "lower rto.score.batch"),
        (400, "correct the server or the url"),
        (302, "correct the server or the url"),
    ],
)
def test_a_refusal_is_not_tried_again(code, hint, monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    act = status(code, b"no: Bearer secret-key\x1b[31m", Location="http://127.0.0.1:9/elsewhere")
    with serving(act) as server:
        with pytest.raises(ValueError, match=f"rto.score.server: .* refuses with status {code}: no.*{hint}") as caught:
            server_scorer(server.url, **FAST)(ANSWERS)
    assert len(server.requests) == 1
    assert "secret-key" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("before", range(50, 101, 5))
def test_no_part_of_a_secret_is_shown_where_a_key_is_shortened(before, monkeypatch):
    monkeypatch.setenv(KEY, "sk-0123456789")
    key = "x" * before + "sk-0123456789" + "y" * 60
    with serving(text(f'{{"rewards": [1], "{key}": 1, "{key}": 2}}')) as server:
        with pytest.raises(ValueError, match="key 'xx.* appears twice in one object") as caught:
            server_scorer(server.url, **FAST)(ANSWERS)
    assert "sk-" not in str(caught.value) and "789" not in str(caught.value)


def test_the_first_batch_that_fails_ends_the_others():
    release = threading.Event()

    def wait(handler, asked):
        release.wait(20)

    with serving(status(400), *[wait] * 6) as server:
        started = time.monotonic()
        with pytest.raises(ValueError, match="status 400"):
            server_scorer(server.url, batch=1, timeout=15, retries=4)(ANSWERS)
        assert time.monotonic() - started < 3
        release.set()


def test_key_and_credentials_are_headers(monkeypatch):
    with serving() as server:
        with_credentials = server.url.replace("http://", "http://me:p%40ss@")
        server_scorer(with_credentials, **FAST)(ANSWERS)
        assert server.requests[-1][1]["Authorization"] == "Basic bWU6cEBzcw=="
        monkeypatch.setenv(KEY, " secret-key\n")
        server_scorer(with_credentials, **FAST)(ANSWERS)
        assert server.requests[-1][1]["Authorization"] == "Bearer secret-key"
        monkeypatch.setenv(KEY, "two\nlines")
        with pytest.raises(ValueError, match=KEY) as caught:
            server_scorer(server.url)
        assert "lines" not in str(caught.value)


def test_no_part_of_the_url_comes_back(monkeypatch):
    """Whatever the server repeats of it."""
    monkeypatch.setenv(KEY, "key-hunter1")

    def echo(handler, asked):
        said = f"{handler.path} {handler.headers['Authorization']} user-hunter pass@hunter frag-hunter val hunter"
        reply(handler, 400, said.encode())

    with serving(echo, echo) as server:
        url = server.url.replace("http://", "http://user-hunter:pass%40hunter@")
        with pytest.raises(ValueError, match="refuses with status 400: /get_reward") as caught:
            server_scorer(f"{url}?val+hunter&token=tok-hunter#frag-hunter", **FAST)(ANSWERS)
        monkeypatch.delenv(KEY)
        with pytest.raises(ValueError, match="status 400") as basic:
            server_scorer(f"{url}?val+hunter&token=tok-hunter#frag-hunter", **FAST)(ANSWERS)
    for error in (caught, basic):
        assert "hunter" not in str(error.value) and "Bearer" not in str(error.value).replace("Bearer ***", "")
        assert "dXNlci1odW50ZXI" not in str(error.value)  # base64


def test_failures_do_not_change_what_a_run_draws():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with serving(status(500)) as server:
        server_scorer(server.url, **FAST)(ANSWERS)
    assert random.random() == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5000/get_reward",
        "ftp://127.0.0.1/x",
        "http://",
        "http:///get_reward",
        "http://a b/",
        "http://a:99999/",
        "http://a:port/",
        "http://[::1/",
        "http://höst/",
        "http://a/\n",
        "http://" + "a" * 70 + "/",
        "me:hunter2@host/x",
        "host:80/x?token=hunter2",
        "me:pass?hunter2@host/x",
        "http://me:hunter2#@host/x",
    ],
)
def test_a_url_that_is_none(url):
    with pytest.raises(
        ValueError, match="^rto.score.server: wanted a url like http:..127.0.0.1:5000.get_reward"
    ) as caught:
        server_scorer(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}, {"batch": 0}])
def test_settings_that_cannot_be(options):
    with pytest.raises(ValueError, match=f"rto.score.{next(iter(options))} must be"):
        server_scorer("http://127.0.0.1/x", **options)
