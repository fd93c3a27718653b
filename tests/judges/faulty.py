"""A real HTTP server on this machine that answers as it is told to, one told answer per request."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Told(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), json.loads(body)))
            act = server.acts.pop(0) if server.acts else scores
        act(self, json.loads(body))

    def log_message(self, *_):
        return


def reply(handler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def scores(handler, asked) -> None:
    """As it should be: the length of each query."""
    reply(handler, 200, json.dumps({"rewards": [len(q) for q in asked["query"]], "extra_logs": {}}).encode())


def status(code: int, body: bytes = b"", **headers: str) -> Callable:
    return lambda handler, asked: reply(handler, code, body, **headers)


def text(body: str | bytes) -> Callable:
    return status(200, body if isinstance(body, bytes) else body.encode())


def serving(*acts: Callable):
    """The server, with `.url`, and `.requests` as (path, headers, JSON) so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    server.daemon_threads = True
    server.acts, server.requests, server.lock = list(acts), [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/get_reward"
    return running(server)


@contextmanager
def running(server: ThreadingHTTPServer):
    """The server, answering until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
