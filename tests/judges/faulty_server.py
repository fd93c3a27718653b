"""A real HTTP server on this machine that speaks chat completions and misbehaves on demand."""

import functools
import json
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.judges.faulty import running

Answer = Callable[["Handler", str, int], None]
"""answer(handler, prompt, how many requests came before this one) writes the whole response."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(
                {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body}
            )
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            server.answer(self, body["messages"][-1]["content"], number)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.open -= 1

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.begin(status, **{"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def say(self, text: str | None) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.send(200, json.dumps(reply).encode())

    def fail(self, status: int, message: str, **headers: str) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)

    def log_message(self, *args) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer, port: int = 0):
        self.answer, self.requests, self.lock, self.open, self.most_open = answer, [], threading.Lock(), 0, 0
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request, client_address) -> None:
        return

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def serving(answer: Answer, port: int = 0) -> AbstractContextManager[Server]:
    return running(Server(answer, port))


def drip(handler: Handler, prompt: str, number: int) -> None:
    """A body that never ends, a byte at a time."""
    handler.begin(200, Transfer_Encoding="chunked")
    for _ in range(400):
        handler.wfile.write(b"1\r\n \r\n")
        handler.wfile.flush()
        time.sleep(0.02)


def flood(handler: Handler, prompt: str, number: int) -> None:
    """A body of 64 MiB."""
    handler.begin(200, Content_Length=str(64 * 2**20))
    for _ in range(64):
        handler.wfile.write(b" " * 2**20)


def breaks_off(handler: Handler, prompt: str, number: int) -> None:
    """Half of what was promised, then the connection is closed."""
    handler.begin(200, Content_Length="1000")
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True


def endless_error(handler: Handler, prompt: str, number: int) -> None:
    """A status 500 whose body does not end."""
    handler.begin(500)
    handler.wfile.write(b'{"error": {"message": "')
    while True:
        handler.wfile.write(b"no " * 2**18)


def dripping_error(handler: Handler, prompt: str, number: int) -> None:
    handler.begin(400, Content_Length="100000")
    for _ in range(400):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def dripping_head(handler: Handler, prompt: str, number: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(400):
        handler.wfile.write(b"X-%d: x\r\n" % i)
        time.sleep(0.02)


@functools.cache
def packed() -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(512)) + packer.flush()


def bomb(handler: Handler, prompt: str, number: int) -> None:
    """A reply of 2 MiB that unpacks to 512 MiB."""
    handler.send(200 if number % 2 else 500, packed(), Content_Encoding="gzip")
