"""One question to an OpenAI-compatible endpoint, with retries; the reply is bounded and trusted with nothing."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rto_fast.files.foreign import no_duplicates
from rto_fast.files.text import one_line, valid
from rto_fast.judges.address import read_address
from rto_fast.judges.llm.bounded_client import MAX_BODY, bounded_client
from rto_fast.judges.llm.options import LLMOptions


class Failure(Exception):
    """A question without a reply, and whose fault that is.

    "question": this one cannot be answered; "server": it may be later; "settings": no question would be.
    """

    def __init__(self, reason: str, whose: str):
        super().__init__(reason)
        self.whose = whose


class Client:
    """Asks the judge. `model`, `url` default to RTO_FAST_JUDGE_MODEL and OPENAI_BASE_URL; the key comes from
    OPENAI_API_KEY alone, is sent to that url, and is kept out of every message and reply. ValueError, one line, when no
    judge is named or the openai package is missing.

    Retried are broken connections, time-outs, and the statuses 408, 409, 429 and 5xx, `retries` times, after the
    server's Retry-After or 0.5, 1, 2, 4, 8, ... 8 seconds. `timeout` bounds each attempt whole.
    """

    def __init__(self, options: LLMOptions):
        try:
            import openai
        except ImportError:
            said = 'asking a language model needs the openai package; pip install "rto_fast[judge]"'
            raise ValueError(f"judge: {said}") from None
        self.openai: Any = openai
        self.options = options
        url = options.url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.model = options.model or os.environ.get("RTO_FAST_JUDGE_MODEL") or ""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.address = read_address(url, "llm.url", "http://localhost:8000/v1", key)
        if not self.model:
            raise ValueError("llm.model: no judge is named; use --llm.model, or set RTO_FAST_JUDGE_MODEL")
        if not key and self.address.url.hostname == "api.openai.com":
            raise ValueError("llm.url: api.openai.com wants a key; set OPENAI_API_KEY, or name your server (--llm.url)")
        self.host = self.address.shown
        settings = {"temperature": options.temperature, "max_tokens": options.max_tokens}
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.client = self.openai.AsyncOpenAI(
            # without the url's name and password where there is a key: the library would send those in its place
            base_url=(self.address.url if key else urlsplit(url))._replace(query="", fragment="").geturl(),
            default_query=dict(parse_qsl(self.address.url.query, keep_blank_values=True)),
            api_key=key or "none",  # a local server wants none, but the library insists on one
            max_retries=options.retries,
            timeout=options.timeout,
            http_client=bounded_client(self.openai, options.timeout),
        )
        # a loop can end a reply that drips at its deadline, which a blocking read cannot
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="judge", daemon=True).start()

    def ask(self, prompt: str) -> str:
        """The judge's reply. Raises Failure. Safe to call from several threads."""
        for attempt in range(self.options.retries + 1):
            try:
                return self.address.hide(_content(self._body(prompt), self.address.hide))
            except _Broken as broken:
                reason = str(broken)
                if attempt < self.options.retries:
                    time.sleep(min(0.5 * 2**attempt, 8))
        raise Failure(reason, "server")

    def _body(self, prompt: str) -> bytes:
        openai = self.openai
        create = self.client.chat.completions.with_raw_response.create
        work = create(model=self.model, messages=[{"role": "user", "content": prompt}], **self.settings)
        try:
            body = asyncio.run_coroutine_threadsafe(work, self.loop).result().content
        except openai.APITimeoutError:
            raise Failure(f"no whole reply within {self.options.timeout:g} s", "server") from None
        except openai.APIConnectionError as error:
            raise Failure(f"no connection ({self._cause(error)})", "server") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        if len(body) > MAX_BODY:
            raise _Broken(f"a reply of more than {MAX_BODY // 2**20} MiB")
        return body

    def _status(self, error: Any) -> Failure:
        code = error.status_code
        said = self.address.hide(" ".join(str(_message(error.body) or "").split()))[:200]
        settings, server = code in (401, 403, 404, 405) or code < 400, code in (408, 409, 429) or code >= 500
        whose = "settings" if settings else "server" if server else "question"
        hint = {
            401: "; check OPENAI_API_KEY",
            403: "; check OPENAI_API_KEY",
            404: "; check --llm.url (it mostly ends in /v1) and --llm.model",
        }.get(code, "; check --llm.url, redirects are not followed" if code < 400 else "")
        return Failure(f"status {code}" + (f", {said!r}" if said else "") + hint, whose)

    def _cause(self, error: BaseException) -> str:
        """What is at the bottom of a library's error."""
        while beneath := error.__cause__ or error.__context__:
            # one for each of a host's addresses
            error = beneath.exceptions[-1] if isinstance(beneath, BaseExceptionGroup) else beneath
        return f"{type(error).__name__}: {one_line(self.address.hide(str(error)), 200)}"


class _Broken(Exception):
    """A reply with the right status that is none."""


def _content(body: bytes, hide: Callable[[str], str]) -> str:
    def shown() -> str:
        return repr(hide(body.decode(errors="replace"))[:60])

    try:
        reply = json.loads(body, object_pairs_hook=no_duplicates)
        content = reply["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise _Broken(f"a reply that is not JSON: {shown()}") from None
    except (KeyError, IndexError, TypeError):
        raise _Broken(f"a reply without choices[0].message.content: {shown()}") from None
    # a refusal has no content
    if content is not None and not isinstance(content, str):
        raise _Broken(f"a reply whose content is no text: {shown()}")
    return valid(content or "")


def _message(body: object) -> object:
    """What an error says, which servers wrap in different ways."""
    for _ in range(4):
        inner = [body[name] for name in ("message", "error", "detail") if isinstance(body, dict) and name in body]
        body = inner[0] if inner else body
    return body
