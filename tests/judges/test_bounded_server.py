"""The example server before clients that send slowly, too much, or nothing: it refuses them, and serves the others."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from rto_fast.judges import Answer, bounded_server
from rto_fast.judges.serve import RewardServer, Serve
from rto_fast.judges.server import KEY, server_scorer
from tests.judges.faulty import running

ASKED = b'{"query": ["a", "abc"]}'
HEAD = b"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def lengths(answers: list[Answer]) -> list[float]:
    return [float(len(a.prompt + a.response)) for a in answers]


def listening(scorer=lengths, max_request_mb: int = 16):
    return running(RewardServer(Serve("m", port=0, max_answers=10_000, max_request_mb=max_request_mb), scorer))


def ask(server, body: bytes = ASKED, path: str = "/get_reward") -> tuple[int, dict]:
    """By a client of the standard library, which sends all of a request before it reads."""
    url = f"http://127.0.0.1:{server.server_port}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


@contextlib.contextmanager
def clients(server, count: int, first: bytes):
    with contextlib.ExitStack() as stack:
        connect = lambda: stack.enter_context(socket.create_connection(server.server_address, timeout=20))  # noqa: E731
        opened = [connect() for _ in range(count)]
        for connection in opened:
            connection.sendall(first)
        yield opened


def drip(opened: list[socket.socket], stop: threading.Event) -> threading.Thread:
    """A byte every 0.1 s on each, so that no single read is slow."""

    def send() -> None:
        for _ in range(200):
            if stop.wait(0.1):
                return
            for connection in opened:
                with contextlib.suppress(OSError):
                    connection.send(b" ")

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "first, said",
    [
        (HEAD % 1000 + b"{", b"408"),
        (b"POST /get_reward HTTP/1.1\r\nHost: x\r\nX-Endless: ", b""),
        (b"POST /get", b""),
        (b"", b""),
    ],
)
def test_a_dripping_client_is_cut_off_at_the_deadline(monkeypatch, first, said):
    monkeypatch.setattr(bounded_server, "READ_LIMIT_S", 1.0)
    monkeypatch.setattr(bounded_server, "LINGER_S", 0.5)
    stop = threading.Event()
    with listening() as server, clients(server, 3, first) as opened:
        started = time.monotonic()
        thread = drip(opened, stop)
        try:
            for connection in opened:
                with contextlib.suppress(ConnectionError):
                    got = connection.recv(1000)
                    assert said in got and (said or not got)
            assert 0.5 < time.monotonic() - started < 5
            assert ask(server) == (200, {"rewards": [1.0, 3.0]})
        finally:
            stop.set()
            thread.join()


def test_others_are_served_while_seventy_bodies_drip():
    stop = threading.Event()
    with listening() as server, clients(server, 70, HEAD % 1000) as opened:
        thread = drip(opened, stop)
        try:
            time.sleep(0.5)
            started = time.monotonic()
            assert [ask(server)[0] for _ in range(5)] == [200] * 5
            assert time.monotonic() - started < 5
        finally:
            stop.set()
            thread.join()


def test_whoever_sends_for_longest_makes_place_for_one_more(monkeypatch):
    """Also where those that are closed come back."""
    monkeypatch.setattr(bounded_server, "CONNECTIONS", 32)
    stop = threading.Event()

    def hold(address):
        while not stop.wait(0.3):
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=20) as connection:
                connection.sendall(HEAD % 1000)
                connection.recv(1000)

    with listening() as server:
        threads = [threading.Thread(target=hold, args=(server.server_address,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(200):
                if server.connections._value == 0:
                    break
                time.sleep(0.05)
            assert server.connections._value == 0
            assert [ask(server) for _ in range(20)] == [(200, {"rewards": [1.0, 3.0]})] * 20
        finally:
            stop.set()
            with clients(server, 40, HEAD % 1000):
                for thread in threads:
                    thread.join()


def test_more_requests_than_places_are_told_to_come_again(monkeypatch):
    """Where all are whole, none of them is closed."""
    monkeypatch.setattr(bounded_server, "CONNECTIONS", 4)
    slow = threading.Event()

    def scorer(answers):
        slow.wait(20)
        return lengths(answers)

    with listening(scorer) as server:
        with clients(server, 4, HEAD % len(ASKED) + ASKED) as opened:
            time.sleep(0.3)
            before = threading.active_count()
            with socket.create_connection(server.server_address, timeout=20) as one_more:
                assert b" 503 " in one_more.recv(1000)
            assert threading.active_count() <= before
            slow.set()
            got = [b"".join(iter(lambda c=c: c.recv(65536), b"")) for c in opened]
            assert all(b'{"rewards": [1.0, 3.0]}' in reply for reply in got)
        assert server_scorer(server.url, timeout=5, retries=5, backoff=0.2)([Answer("a", "b")]) == [2.0]


def test_json_that_grows_is_looked_at_one_request_at_a_time(monkeypatch):
    """Whatever it grows to, what is kept of it is the texts."""
    inside, most = [], []
    real = json.loads

    def loads(*args, **kwargs):
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return real(*args, **kwargs)

    body = b'{"query": [' + b"[]," * 1000 + b"[]]}"
    with listening() as server, clients(server, 6, HEAD % len(body) + body) as opened:
        monkeypatch.setattr("rto_fast.judges.serve.json.loads", loads)
        assert all(b" 400 " in connection.recv(1000) for connection in opened)
    assert max(most) == 1


@pytest.mark.parametrize("path, status", [("/get_reward", 413), ("/elsewhere", 404)])
def test_a_client_that_sends_too_much_reads_why(path, status):
    """Also one that first sends all of it."""
    with listening(max_request_mb=1) as server:
        for size in ((1 << 20) + 1, 40 << 20):
            code, said = ask(server, b" " * size, path)
            assert code == status and ("a request may hold 1048576 bytes" in said["error"] or status == 404)
        assert ask(server)[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_why(tmp_path):
    file = tmp_path / "big"
    file.write_bytes(b" " * (20 << 20))
    with listening() as server:
        command = ["curl", "-sS", "-m", "20", "-w", " %{http_code}", "--data-binary", f"@{file}", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == '{"error": "a request may hold 16777216 bytes, got 20971520"} 413'


def test_a_flood_after_a_refusal_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(bounded_server, "LINGER_S", 0.5)
    with listening(max_request_mb=1) as server, clients(server, 1, HEAD % (1 << 40)) as (connection,):
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 10:
                connection.sendall(b" " * 65536)
        assert time.monotonic() - started < 5
        assert ask(server, b'{"query":[]}'[:10])[0] == 400


def test_a_client_that_does_not_read_its_reply_is_given_up(monkeypatch):
    monkeypatch.setattr(bounded_server, "REPLY_LIMIT_S", 0.5)
    many = json.dumps({"query": ["a"] * 10_000}).encode()
    huge = lambda answers: [0.1] * 3_000_000  # noqa: E731  more than the buffers of a connection hold
    with listening(huge) as server, clients(server, 1, HEAD % len(many) + many):
        waited = 0
        while server.connections._value == bounded_server.CONNECTIONS and waited < 50:
            time.sleep(0.1)
            waited += 1
        for _ in range(100):
            if server.connections._value == bounded_server.CONNECTIONS:
                return
            time.sleep(0.1)
    pytest.fail("the connection is still held")


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00hunter2\r\n\r\n",
        b"POST /get_reward?token=hunter2 HTTP/9\r\n\r\n",
        b"hunter2 hunter2 hunter2 hunter2\r\n\r\n",
        b"POST http://me:hunter2@h/x?hunter2#hunter2 HTTP/1.1\r\nAuthorization: Bearer hunter2\r\n\r\n",
        b"POST /get_reward HTTP/1.1\r\n" + b"X: hunter2\r\n" * 200 + b"\r\n",
        b"PUT /hunter3?hunter2 HTTP/1.1\r\nContent-Length: 7\r\n\r\nhunter2",
        b"GET /" + b"hunter2" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_is_one_sentence_and_the_log_shows_no_secret(head, capfd):
    with listening() as server:
        with clients(server, 1, head) as (connection,):
            connection.shutdown(socket.SHUT_WR)
            got = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b'{"error": "' in got and b"hunter2" not in got and b"<html" not in got.lower()
        assert ask(server)[0] == 200
    log = capfd.readouterr().err
    assert log.count("\n") == 2 and "hunter2" not in log and "Traceback" not in log and "200" in log


def test_a_request_that_ends_early_is_refused():
    with listening() as server, clients(server, 1, HEAD % 100 + ASKED) as (connection,):
        connection.shutdown(socket.SHUT_WR)
        assert b"the request ended 77 bytes early" in b"".join(iter(lambda: connection.recv(65536), b""))


def test_clients_that_vanish_leave_no_trace(capfd):
    with listening() as server:
        for _ in range(5):
            with clients(server, 1, HEAD % 100 + b"{") as (connection,):
                # closed with a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        time.sleep(0.2)
        assert ask(server)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_that_fails_is_a_500_with_the_traceback_in_the_log(capfd):
    def fails(answers):
        raise RuntimeError("out of something")

    with listening(fails) as server:
        assert ask(server) == (500, {"error": "the reward model failed; the server's log says how"})
        assert ask(server)[0] == 500
    assert "RuntimeError: out of something" in capfd.readouterr().err
