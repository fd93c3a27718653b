"""One question to an OpenAI-compatible endpoint, with retries; the reply is bounded and trusted with nothing."""

import importlib
import json
import os
import time
from urllib.parse import urlsplit

from rto_fast.evaluate.answers import valid

MAX_BODY = 4 * 2**20
"""Bytes of a reply; a verdict needs some hundred."""


class Failure(Exception):
    """A question without a reply, and whose fault that is.

    "question": this one cannot be answered; "server": it may be later; "settings": no question would be.
    """

    def __init__(self, reason: str, whose: str):
        super().__init__(reason)
        self.whose = whose


class Client:
    """Asks the judge. `model`, `url` default to RTO_FAST_JUDGE_MODEL and OPENAI_BASE_URL; the key comes from
    OPENAI_API_KEY alone, is sent to that url, and is kept out of every message and reply.

    Retried are broken connections, time-outs, and the statuses 408, 409, 429 and 5xx, `retries` times, after the
    server's Retry-After or 0.5, 1, 2, 4, 8, ... 8 seconds.
    """

    def __init__(
        self,
        *,
        url: str | None,
        model: str | None,
        temperature: float | None,
        max_tokens: int | None,
        retries: int,
        timeout: float,
    ):
        self.openai = _library()
        self.url = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.model = model or os.environ.get("RTO_FAST_JUDGE_MODEL") or ""
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"llm.url: must be like http://localhost:8000/v1, got {self.url!r}")
        if not self.model:
            raise ValueError("llm.model: no judge is named; use --llm.model, or set RTO_FAST_JUDGE_MODEL")
        if not self.key and parts.hostname == "api.openai.com":
            raise ValueError("llm.url: api.openai.com wants a key; set OPENAI_API_KEY, or name your server (--llm.url)")
        self.host = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path
        """The address without what may be secret in it."""
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.retries, self.timeout = retries, timeout
        # a local server wants no key, but the library insists on one
        self.client = self.openai.OpenAI(
            base_url=self.url, api_key=self.key or "none", max_retries=retries, timeout=timeout
        )

    def ask(self, prompt: str) -> str:
        """The judge's reply. Raises Failure. Safe to call from several threads."""
        for attempt in range(self.retries + 1):
            try:
                return self._hide(_content(self._body(prompt)))
            except _Broken as broken:
                reason = str(broken)
                if attempt < self.retries:
                    time.sleep(min(0.5 * 2**attempt, 8))
        raise Failure(self._hide(reason), "server")

    def _body(self, prompt: str) -> bytes:
        openai = self.openai
        create = self.client.chat.completions.with_streaming_response.create
        body = b""
        try:
            with create(model=self.model, messages=[{"role": "user", "content": prompt}], **self.settings) as response:
                started = time.monotonic()
                # version 2 of the library is built on httpx, version 3 on httpx2
                http = importlib.import_module(type(response.http_response).__module__.partition(".")[0])
                try:
                    for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > MAX_BODY:
                            raise _Broken(f"a reply of more than {MAX_BODY // 2**20} MiB")
                        if time.monotonic() - started > self.timeout:
                            raise _Broken("a reply that does not end")
                except http.HTTPError as error:
                    raise _Broken(f"a reply that broke off ({type(error).__name__})") from None
        except openai.APITimeoutError:
            raise Failure(f"no reply within {self.timeout:g} s", "server") from None
        except openai.APIConnectionError as error:
            raise Failure(self._hide(f"no connection ({error.__cause__ or error})"), "server") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        return body

    def _status(self, error) -> Failure:
        code = error.status_code
        said = " ".join(str(_message(error.body) or "").split())[:200]
        whose = "question"
        if code in (401, 403, 404, 405):
            whose = "settings"
        elif code in (408, 409, 429) or code >= 500:
            whose = "server"
        hint = {
            401: "; check OPENAI_API_KEY",
            403: "; check OPENAI_API_KEY",
            404: "; check --llm.url (it mostly ends in /v1) and --llm.model",
        }.get(code, "")
        return Failure(self._hide(f"status {code}" + (f", {said!r}" if said else "") + hint), whose)

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text


class _Broken(Exception):
    """A reply with the right status that is none."""


def _content(body: bytes) -> str:
    try:
        reply = json.loads(body)
        content = reply["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise _Broken(f"a reply that is not JSON: {body[:60]!r}") from None
    except (KeyError, IndexError, TypeError):
        raise _Broken(f"a reply without choices[0].message.content: {body[:60]!r}") from None
    # a refusal has no content
    if content is not None and not isinstance(content, str):
        raise _Broken(f"a reply whose content is no text: {body[:60]!r}")
    return valid(content or "")


def _message(body: object) -> object:
    for name in ("message", "error", "detail"):
        if isinstance(body, dict) and name in body:
            return _message(body[name])
    return body


def _library():
    try:
        import openai
    except ImportError:
        raise ValueError(
            'judge: asking a language model needs the openai package; pip install "rto_fast[judge]"'
        ) from None
    return openai
