"""The example server: in this process for what it refuses, in one of its own beside a client for what it serves."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.judges import Answer
from rto_fast.judges.reward_model import RewardModel
from rto_fast.judges.serve import Serve, make_server
from rto_fast.judges.server import KEY, server_scorer
from rto_fast.model.load import load_scalar_model
from tests.data.tokenizers import byte_level
from tests.judges.faulty import running
from tests.judges.test_reward_model import ANSWERS, scalar, write_reward_model

ROOT = Path(__file__).parents[2]
FAST = dict(timeout=20.0, retries=1, backoff=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A reward model with its calibration."""
    tokenizer = byte_level()
    model = scalar("llama", len(tokenizer))
    model.backbone.config.mean, model.backbone.config.std = 0.25, 2.0
    return write_reward_model(tmp_path_factory.mktemp("reward-model"), model, tokenizer)


@pytest.fixture(scope="module")
def expected(folder) -> list[float]:
    return RewardModel(load_scalar_model(folder), load_tokenizer(folder), max_rows=64)(ANSWERS)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def listening(folder: str, **options):
    return running(make_server(Serve(model=folder, port=0, device="cpu", **options)))


def ask(server, body: bytes, method: str = "POST", path: str = "/get_reward", **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def started(folder: str, port: int = 0) -> tuple[subprocess.Popen, str]:
    command = [
        sys.executable,
        "-m",
        "rto_fast.judges.serve",
        "--model",
        folder,
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    said = process.stdout.readline()
    assert said, process.stderr.read()
    return process, said.split()[-1]


def interruptible() -> None:
    """A shell starts what it runs in the background (pytest &) with SIGINT ignored, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen, number: int = signal.SIGINT) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=20)


def test_a_server_in_a_process_of_its_own_scores_as_the_model_here(folder, expected):
    process, url = started(folder)
    try:
        scorer = server_scorer(url, batch=2, **FAST)
        assert scorer(ANSWERS) == pytest.approx(expected, abs=1e-6)
        # it dies, and a run that uses it ends with one sentence
        end(process, signal.SIGKILL)
        with pytest.raises(OSError, match="rto.score.server: .* gave no scores in 2 attempts .*start it again"):
            scorer(ANSWERS)
        # started again at the same place, the same client goes on
        process, again = started(folder, port=int(url.rsplit(":", 1)[1].split("/")[0]))
        assert again == url
        assert scorer(ANSWERS) == pytest.approx(expected, abs=1e-6)
    finally:
        out, err = end(process)
    assert out == "stopped\n" and process.returncode == 0
    assert "POST /get_reward" in err and "Because" not in err and "Traceback" not in err


def test_bare_queries_of_other_clients_are_scored(folder, expected):
    with listening(folder) as server:
        whole = [a.prompt + a.response for a in ANSWERS[5:8]]
        status, said = ask(
            server, json.dumps({"query": whole, "prompts": ["not in it"] * 3, "labels": [1, 2, 3]}).encode()
        )
    assert status == 200
    # all of them as finished
    assert said["rewards"] == pytest.approx([expected[5], expected[7], expected[7]], abs=1e-6)


def test_concurrent_clients_get_their_own_scores(folder, expected):
    with listening(folder) as server:
        scorer = server_scorer(server.url, batch=1, **FAST)
        assert scorer(ANSWERS * 4) == pytest.approx(expected * 4, abs=1e-6)


@pytest.mark.parametrize(
    "body, status, error",
    [
        (b"", 400, "not JSON"),
        (b"nonsense", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"query": ["a"], "query": ["b"]}', 400, "gives a key twice"),
        (b"\xff", 400, "not JSON"),
        (b"{}", 400, 'wanted {"query": [text, ...]}'),
        (b'{"query": "text"}', 400, 'wanted {"query": [text, ...]}'),
        (b'{"query": [1]}', 400, 'wanted {"query": [text, ...]}'),
        (b'{"query": ["a"], "prompts": ["a", "b"]}', 400, '"prompts" must be a list of 1 strs, one per query'),
        (b'{"query": ["a"], "finished": ["yes"]}', 400, '"finished" must be a list of 1 bools, one per query'),
        (b'{"query": ["a", "b", "c"]}', 413, "a request may hold 2 queries, got 3"),
        (b" " * ((1 << 20) + 1), 413, "a request may hold 1048576 bytes, got 1048577"),
    ],
)
def test_a_wrong_request_is_one_sentence(folder, body, status, error):
    with listening(folder, max_answers=2, max_request_mb=1) as server:
        got = ask(server, body)
        assert got[0] == status and error in got[1]["error"]
        assert ask(server, b'{"query": []}') == (200, {"rewards": []})


def test_a_text_is_bounded_before_it_is_tokenised(folder):
    with listening(folder, max_request_mb=4) as server:
        long = json.dumps({"query": ["it", "a " * 2**19 + "a"]}).encode()
        assert ask(server, long) == (413, {"error": "a query may hold 1048576 characters, got 1048577"})
        status, said = ask(server, json.dumps({"query": ["a " * 2**19]}).encode())
        assert status == 200 and len(said["rewards"]) == 1


def test_paths_and_health(folder):
    with listening(folder) as server:
        assert ask(server, b"", method="GET", path="/health") == (200, {"model": folder})
        assert ask(server, b"", method="GET", path="/get_reward")[0] == 404
        assert ask(server, b'{"query": []}', path="/")[0] == 404
        with pytest.raises(ValueError, match="status 404: .*check the path"):
            server_scorer(server.url.replace("get_reward", "score"), **FAST)(ANSWERS)


def test_a_length_that_is_none(folder):
    with listening(folder) as server:
        for line in (b"", b"Content-Length: -1\r\n", b"Content-Length: 9999999999999999999\r\n"):
            with socket.create_connection(server.server_address, timeout=20) as connection:
                connection.sendall(b"POST /get_reward HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n")
                assert connection.recv(1000).split()[1] in (b"411", b"413")


def test_a_text_that_cannot_be_scored_leaves_the_server_up(folder, expected, monkeypatch):
    with listening(folder) as server:
        head = server.scorer.model.head
        weight = head.weight.detach().clone()
        with torch.no_grad():
            head.weight.fill_(torch.nan)
        with pytest.raises(ValueError, match="status 400: .*every score must be a finite number, got nan"):
            server_scorer(server.url, **FAST)(ANSWERS)
        with torch.no_grad():
            head.weight.copy_(weight)
        assert server_scorer(server.url, **FAST)(ANSWERS) == pytest.approx(expected, abs=1e-6)


def test_too_many_requests_are_told_to_come_again(folder, expected, monkeypatch):
    monkeypatch.setattr("rto_fast.judges.serve.WAITING", 1)
    with listening(folder) as server:
        scorer = server_scorer(server.url, batch=2, timeout=20, retries=6, backoff=0.05)
        assert scorer(ANSWERS) == pytest.approx(expected, abs=1e-6)
        server.places.acquire()
        assert ask(server, b'{"query": []}')[0] == 503


def test_with_a_key_only_those_who_have_it(folder, monkeypatch):
    monkeypatch.setenv(KEY, "open sesame")
    with listening(folder) as server:
        scorer = server_scorer(server.url, **FAST)
        assert len(scorer(ANSWERS)) == len(ANSWERS)
        assert ask(server, b'{"query": []}', Authorization="Bearer wrong")[0] == 401
        monkeypatch.delenv(KEY)
        with pytest.raises(ValueError, match=f"status 401: .*set {KEY}"):
            server_scorer(server.url, **FAST)(ANSWERS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"host": "0.0.0.0"}, f"host: 0.0.0.0 can be reached by others; set {KEY}"),
        ({"host": "example.org"}, "can be reached by others"),
        ({"port": 70000}, "port must be in 0 ... 65535"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"model": "/no/such/folder"}, "model: no config.json in"),
    ],
)
def test_options_that_cannot_be(folder, options, message):
    with pytest.raises(ValueError, match=message):
        make_server(Serve(**({"model": folder, "port": 0} | options)))


def test_mistakes_on_the_command_line_are_one_line(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rto_fast.judges.serve", "--model", folder, "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"rto_fast: error: port: cannot listen at 127.0.0.1:{port}: ")
    assert "Traceback" not in done.stderr


def test_answers_survive_the_wire(folder):
    """Whatever a policy writes."""
    odd = [Answer("p\x00", "\ud800 \u2028 </s> \x1b"), Answer("naïve ", "日本 🙂"), Answer("", "\n\n\n")]
    with listening(folder) as server:
        found = server_scorer(server.url, **FAST)(odd[1:])
        here = server.scorer(odd[1:])
        assert found == pytest.approx(here, abs=1e-6)
        with pytest.raises(ValueError, match="status 400: .*half of a surrogate pair"):
            server_scorer(server.url, **FAST)(odd)
