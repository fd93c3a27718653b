"""The HTTP client beneath the judge's library: every attempt has its time and its size, errors included."""

import asyncio
import importlib
from types import ModuleType
from typing import Any

MAX_BODY = 4 * 2**20
"""Bytes of a reply; a verdict needs some hundred."""
MAX_ERROR = 64 * 2**10
"""Bytes that are read of a reply with another status than 200."""

_OF_BODY = ("content-encoding", "content-length", "transfer-encoding")


def bounded_client(openai: ModuleType, seconds: float) -> Any:
    """An asynchronous HTTP client for `openai`, the library.

    seconds   for one attempt, from the connection to the last byte of the reply, however slowly it drips in; then it
              ends as a time-out of the library's

    A reply comes with its body: at most MAX_BODY + 1 bytes, which is one too many, or MAX_ERROR of an error's. It is
    not unpacked, as few bytes may unpack to any number, and a redirect is not followed.
    """
    # version 2 of the library is built on httpx, version 3 on httpx2
    base = openai.DefaultAsyncHttpxClient
    http = importlib.import_module(base.__base__.__module__.partition(".")[0])

    class Bounded(base):  # type: ignore[misc, valid-type]  # which it is, the installed library says
        async def send(self, request: Any, **options: Any) -> Any:
            request.headers["Accept-Encoding"] = "identity"
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **options | {"stream": True, "follow_redirects": False})
                    try:
                        return http.Response(
                            response.status_code,
                            headers={name: value for name, value in response.headers.items() if name not in _OF_BODY},
                            content=await _read(response),
                            request=request,
                        )
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise http.ReadTimeout("too slow", request=request) from None

    return Bounded()


async def _read(response: Any) -> bytes:
    body, limit = bytearray(), MAX_BODY + 1 if response.status_code == 200 else MAX_ERROR
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])
