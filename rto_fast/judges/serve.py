"""python -m rto_fast.judges.serve --model PATH: a reward server, for rto.score.server or any OpenRLHF-style client.

    POST /get_reward    {"query": [prompt + response, ...], "prompts"?: [...], "finished"?: [...]}
                        -> {"rewards": [number, ...]}
    GET /health         -> {"model": PATH}

"prompts" says where in each query the response begins; without it a query is scored as one text. "finished" says which
end in EOS; without it all do. A query holds at most 2^20 characters. A mistake in a request is a 4xx with {"error":
"one sentence"}. A request has to be there whole within 30 s.
"""

import hmac
import ipaddress
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rto_fast import cli
from rto_fast.config.checks import check
from rto_fast.data.encode import MAX_CHARACTERS
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.foreign import no_duplicates
from rto_fast.files.text import is_unicode
from rto_fast.judges import Answer, Scorer
from rto_fast.judges.bounded_server import BadRequest, BoundedHandler, BoundedServer
from rto_fast.judges.reward_model import RewardModel
from rto_fast.judges.server import KEY
from rto_fast.model.load import DTYPES, load_scalar_model
from rto_fast.runs.open import device_of

WAITING = 64
"""Whole requests held at once; more are asked to come again."""


@dataclass(frozen=True)
class Serve:
    """Serve a reward model over HTTP, for --rto.score.server. Clients have to show a bearer key where the environment
    holds RTO_FAST_REWARD_KEY."""

    model: str
    """Reward model: a Hugging Face folder or hub id with a score or value_head, and its tokenizer."""
    host: str = "127.0.0.1"
    """Address to listen at. Beyond this machine (0.0.0.0) only with a key."""
    port: int = 5000
    """Port to listen at; 0 = any that is free."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: CUDA where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and the arithmetic; the head and the score are float32."""
    max_rows: int = 16384
    """Tokens in one forward pass."""
    max_answers: int = 4096
    """Most answers in one request."""
    max_request_mb: int = 16
    """Largest request; it has to arrive within 30 s."""


class RewardServer(BoundedServer):
    """Answers POST /get_reward with `scorer`'s scores, one request at a time, others waiting."""

    def __init__(self, options: Serve, scorer: Scorer):
        super().__init__((options.host, options.port), Handler)
        self.options, self.scorer = options, scorer
        self.key = os.environ.get(KEY, "").strip()
        self.places = threading.BoundedSemaphore(WAITING)
        self.scoring = threading.Lock()
        self.parsing = threading.Lock()
        """Some JSON takes twenty times its bytes until it is looked at: one at a time."""

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{str(host)}:{port}/get_reward"


class Handler(BoundedHandler):
    server: RewardServer

    def do_GET(self) -> None:
        self.whole()
        if self.path == "/health":
            self.reply(200, {"model": self.server.options.model})
        else:
            self.reply(404, {"error": "wanted POST /get_reward or GET /health"})

    def do_POST(self) -> None:
        try:
            answers = self._asked()
            # only now, so that no place is held for those who send slowly
            if not self.server.places.acquire(blocking=False):
                raise BadRequest(503, f"{WAITING} requests are waiting already")
            try:
                with self.server.scoring:
                    rewards = self.server.scorer(answers)
            finally:
                self.server.places.release()
        except BadRequest as error:
            self.reply(error.status, {"error": str(error)})
        except ValueError as error:  # a text that cannot be scored
            self.reply(400, {"error": str(error)})
        except Exception:  # a fault of ours: the client hears of it, and the log has the traceback
            self.reply(500, {"error": "the reward model failed; the server's log says how"})
            raise
        else:
            self.reply(200, {"rewards": rewards})

    def _asked(self) -> list[Answer]:
        """The request's answers."""
        if self.path != "/get_reward":
            raise BadRequest(404, "wanted POST /get_reward")
        shown = self.headers.get("Authorization", "").encode()
        if self.server.key and not hmac.compare_digest(shown, f"Bearer {self.server.key}".encode()):
            raise BadRequest(401, f"wanted the bearer key of {KEY}")
        try:
            body = self.body(self.server.options.max_request_mb << 20)
            with self.server.parsing:
                asked = json.loads(body.decode(), object_pairs_hook=no_duplicates)
                return read_answers(asked, self.server.options.max_answers)
        except (ValueError, RecursionError):
            raise BadRequest(400, "the request is not JSON, or gives a key twice") from None


def read_answers(asked: object, max_answers: int) -> list[Answer]:
    """The answers of a request's JSON. Raises BadRequest, one sentence, for what is none."""
    given = asked if isinstance(asked, dict) else {}
    queries = given.get("query")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        raise BadRequest(400, 'wanted {"query": [text, ...]}')
    if len(queries) > max_answers:
        raise BadRequest(413, f"a request may hold {max_answers} queries, got {len(queries)}")
    if (longest := max(map(len, queries), default=0)) > MAX_CHARACTERS:
        raise BadRequest(413, f"a query may hold {MAX_CHARACTERS} characters, got {longest}")
    columns = {}
    for name, kind, default in (("prompts", str, ""), ("finished", bool, True)):
        values = given.get(name)
        values = [default] * len(queries) if values is None else values
        if not isinstance(values, list) or len(values) != len(queries) or not all(type(v) is kind for v in values):
            raise BadRequest(400, f'"{name}" must be a list of {len(queries)} {kind.__name__}s, one per query')
        columns[name] = values
    if not all(map(is_unicode, queries)):
        raise BadRequest(400, "a query holds half of a surrogate pair, which is no text")
    return [
        # some clients write special tokens into the query, and the bare question into prompts
        Answer(prompt if query.startswith(prompt) else "", query.removeprefix(prompt), finished)
        for query, prompt, finished in zip(queries, columns["prompts"], columns["finished"], strict=True)
    ]


def make_server(options: Serve) -> RewardServer:
    """Load the model and listen. Raises ValueError or OSError, one sentence."""
    if not os.environ.get(KEY, "").strip() and not _is_this_machine(options.host):
        raise ValueError(f"host: {options.host} can be reached by others; set {KEY} to a key that clients must show")
    for name in ("max_rows", "max_answers", "max_request_mb"):
        check(getattr(options, name) >= 1, name, "at least 1", getattr(options, name))
    check(0 <= options.port < 65536, "port", "in 0 ... 65535", options.port)
    device = device_of(options.device)
    model = load_scalar_model(options.model, dtype=DTYPES[options.dtype], device=device, field="model")
    scorer = RewardModel(model, load_tokenizer(options.model), max_rows=options.max_rows, field="model")
    try:
        return RewardServer(options, scorer)
    except OSError as error:
        raise OSError(f"port: cannot listen at {options.host}:{options.port}: {error.strerror or error}") from None


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(args: Sequence[str]) -> None:
    options = cli.parse(Serve, args, "python -m rto_fast.judges.serve")
    server = make_server(options)
    print(f"serving {options.model} at {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped by Ctrl-C, 2 bad input."""
    return cli.run(serve, args, "Stopped.")


if __name__ == "__main__":
    sys.exit(main())
