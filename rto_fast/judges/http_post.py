"""One HTTP POST that ends: within its time to the last byte, and within its size."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import SplitResult


class TooLarge(Exception):
    """The answer is longer than asked for."""


class Cancel:
    """Ends the posts that it was given to, from another thread, and those that come later."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.running: set[Callable[[], None]] = set()

    def __call__(self) -> None:
        self.requested.set()
        for abort in list(self.running):
            abort()


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    retry_after: str | None
    body: bytes


def post(
    url: SplitResult, body: bytes, headers: dict[str, str], *, timeout: float, max_bytes: int, cancel: Cancel
) -> Reply:
    """POST `body` over a connection of its own, without proxies and without following redirects.

    `timeout` seconds bound all of it but the look-up of the host's name, however slowly bytes drip in.
    Raises TimeoutError; OSError or HTTPException for a connection that fails, also one that ends in the middle of an
    answer, and when cancelled; TooLarge for an answer of more than `max_bytes`.
    """
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout)
    late = threading.Event()

    def abort() -> None:
        # shut down rather than closed: a read that waits in another thread returns, and no descriptor is reused
        if (open_socket := held or connection.sock) is not None:
            with suppress(OSError):  # it was not connected yet, or not any more
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def expire() -> None:
        late.set()
        abort()

    held: socket.socket | None = None
    timer = threading.Timer(timeout, expire)
    timer.daemon = True
    timer.start()
    cancel.running.add(abort)
    try:
        connection.connect()
        held = connection.sock  # the connection forgets it once the answer's header is there
        if late.is_set() or cancel.requested.is_set():  # before there was a socket to shut down
            raise ConnectionAbortedError
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", target, body, {"Connection": "close", **headers})
        with connection.getresponse() as response:
            if (response.length or 0) > max_bytes:
                raise TooLarge
            content = response.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise TooLarge
            if response.length:
                raise ConnectionError(f"the answer ended {response.length} bytes early")
            if late.is_set():
                raise TimeoutError
            return Reply(response.status, response.getheader("Retry-After"), content)
    except (OSError, HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        cancel.running.discard(abort)
        connection.close()
