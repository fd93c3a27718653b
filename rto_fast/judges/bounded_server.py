"""An HTTP server that no client can hold up: every request and every reply has its time, its size and its place."""

import io
import json
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from rto_fast.files.text import one_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECTIONS = 256
"""Open at once; for one more the one that has been sending for longest is closed, if any still is, or else the new one
is asked to come again."""
READ_LIMIT_S = 30.0
"""Longest that a request may take from the connection to its last byte."""
REPLY_LIMIT_S = 30.0
"""Longest that a client may take to receive its reply."""
LINGER_S = 10.0
"""Longest that what a refused client still sends is thrown away, so that it gets to read why."""
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class BadRequest(Exception):
    """A mistake of the client's, in one sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class BoundedServer(ThreadingHTTPServer):
    """A thread per connection, as many as CONNECTIONS."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type["BoundedHandler"]):
        super().__init__(address, handler)
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        self.sending: dict[socket.socket, None] = {}
        """Connections that may still be sending, the oldest first: whoever sends slowly keeps no place from others."""
        self.guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._has_place():
            with suppress(OSError):
                request.setblocking(False)
                request.send(BUSY)
            self.shutdown_request(request)
            return
        with self.guard:
            self.sending[request] = None
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the machine has no thread left
            self.sent(request)
            self.connections.release()
            raise

    def _has_place(self) -> bool:
        """Whether there is a place for one more, made where nobody but a sender holds it."""
        if self.connections.acquire(blocking=False):
            return True
        with self.guard:
            oldest = next(iter(self.sending), None)
            if oldest is None:
                return False
            del self.sending[oldest]
            with suppress(OSError):  # it left by itself
                oldest.shutdown(socket.SHUT_RDWR)
        return self.connections.acquire(timeout=1.0)

    def sent(self, request: socket.socket) -> None:
        """A connection's request is whole, or given up."""
        with self.guard:
            self.sending.pop(request, None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.sent(request)
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no fault of ours
            super().handle_error(request, client_address)


class _Received(io.RawIOBase):
    """What a connection receives until `end`; a read that would go on after it raises TimeoutError."""

    def __init__(self, connection: socket.socket, seconds: float):
        self.connection = connection
        self.end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class BoundedHandler(BaseHTTPRequestHandler):
    """One request and its reply, in JSON. The time for the request is one for its head and its body together."""

    server: BoundedServer
    server_version = "rto_fast"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.received = _Received(self.connection, READ_LIMIT_S)
        self.rfile = io.BufferedReader(self.received)
        self.unread = True
        """Whether the client may still be sending what nobody will read."""

    def body(self, max_bytes: int) -> bytes:
        """The request's body. Raises BadRequest for one that is too large, of no stated length, cut off or too slow."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise BadRequest(411, "wanted a Content-Length")
        if len(length) > 15 or int(length) > max_bytes:
            raise BadRequest(413, f"a request may hold {max_bytes} bytes, got {length[:20]}")
        try:
            content = self.rfile.read(int(length))
        except TimeoutError:
            raise BadRequest(408, f"the request was not there whole within {READ_LIMIT_S:g} s") from None
        self.whole()
        if len(content) < int(length):
            raise BadRequest(400, f"the request ended {int(length) - len(content)} bytes early")
        return content

    def whole(self) -> None:
        """The client has sent all that there is to read."""
        self.unread = False
        self.server.sent(self.connection)

    def reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.close_connection = True  # what is left of a refused request is not read as the next one
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        end = time.monotonic() + REPLY_LIMIT_S
        with suppress(OSError):  # the client did not wait, or does not read
            self.connection.settimeout(REPLY_LIMIT_S)
            self.end_headers()
            self.connection.settimeout(max(end - time.monotonic(), 0.001))
            self.wfile.write(body)
            if self.unread:
                self._linger()

    def _linger(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        self.received.end = time.monotonic() + LINGER_S
        while self.rfile.read1(1 << 16):
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library finds wrong with a request's head, without repeating it."""
        self.reply(code, {"error": self.responses.get(code, ("the request is not HTTP",))[0]})

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # the path and the status, never a text or a key
        path = re.split("[?#]", getattr(self, "path", "-"))[0].rpartition("@")[2]
        self.log_message("%s", one_line(f"{self.command or '-'} {path} {int(code)}", 200))

    def log_message(self, format: str, *args: object) -> None:
        line = f"{self.address_string()} {format % args}\n".encode("ascii", "backslashreplace").decode()
        with suppress(OSError, ValueError):  # nobody reads the log any more
            sys.stderr.write(line)
