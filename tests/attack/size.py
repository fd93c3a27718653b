"""Files that unpack to gigabytes, tokenizers that grow, and servers whose replies have no end: bounded, and refused."""

import base64
import gzip
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.attack.command import Ended, Outcome, python
from tests.fuzz.place import base, put
from tests.judges.faulty import running

SECONDS, MEBIBYTES = 30.0, 2500.0
"""A preflight of a tiny model takes a quarter of both."""
TIMEOUT_S = 3.0
SLOW, FAST = 0.05, 0.0
REPLIES = {
    "a reply that drips": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ", SLOW),
    "a head that drips": (b"HTTP/1.1 200 OK\r\n", b"X-One: more\r\n", SLOW),
    "an error that drips": (b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", b" ", SLOW),
    "an error without an end": (b'HTTP/1.1 500 No\r\n\r\n{"error": {"message": "', b"no " * 2**18, FAST),
    "a reply without an end": (b'HTTP/1.1 200 OK\r\n\r\n{"rewards": [', b"1.0, " * 2**18, FAST),
}
"""How it begins, what follows for ever, and the seconds between two of those."""


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    yield from _packed(shared, own)
    yield from _rows(shared, own)
    yield from _tokenizers(shared, own)
    yield from _servers(shared, own)


def _packed(shared: Path, own: Path) -> Iterator[Outcome]:
    pairs = (shared / "pairs.jsonl").read_bytes()
    unpacked = ": unpacked it is more than 200 times its size, and more than 64 MiB"
    for name, first, unit, count, last, says in (
        ("honest.jsonl.gz", b"", pairs, 1, b"", ""),
        ("list.json.gz", b"[", b"{},", 734_000_000 // 3, b"{}]", f"list.json.gz{unpacked}"),
        ("lines.jsonl.gz", b"", b"{}\n", 734_000_000 // 3, b"", f"lines.jsonl.gz{unpacked}"),
        ("blank.jsonl.gz", pairs, b"\n", 2_000_000_000, b"", "line 1000025: more than 1,000,000 blank lines; remove"),
    ):
        with gzip.open(own / name, "wb", compresslevel=6) as file:
            file.write(first)
            block = unit * max(1, min(count, 2**20 // len(unit)))
            for _ in range(count * len(unit) // len(block)):
                file.write(block)
            file.write(last)
        seen = _preflight(shared, own, "--data.path", str(own / name))
        size = (own / name).stat().st_size / 2**20
        yield Outcome(f"{name} of {size:.2f} MiB", seen, _refused(seen, says) if says else _passed(seen))


def _rows(shared: Path, own: Path) -> Iterator[Outcome]:
    pairs = (shared / "pairs.jsonl").read_text()
    row = {"prompt": "what is a cow", "chosen": "it is grey .", "rejected": "it is brown ."}
    for column in row:
        long = json.dumps({**row, column: "it is " * (50_000_000 // 6)})
        file = put(own / f"{column}.jsonl", f"{long}\n{pairs}")
        seen = _preflight(shared, own, "--data.path", str(file))
        wanted = _passed(seen) | {"says that it is dropped": "1 text far beyond max_length" in seen.text}
        yield Outcome(f"a {column} of 50 MB among others", seen, wanted)
    flags = ("--data.path", str(put(own / "alone.jsonl", long)), "--data.held-out", "0", "--eval.prompts", "0")
    alone = _preflight(shared, own, *flags)
    yield Outcome("a row of 50 MB alone", alone, _refused(alone, "text far beyond max_length", "shorten its texts"))
    more = put(own / "more.jsonl", json.dumps({**row, "chosen": "it is " * 12_000_000}))
    seen = _preflight(shared, own, "--data.path", str(more))
    yield Outcome("a row of 72 MB", seen, _refused(seen, "more.jsonl, line 1: longer than 64 MiB"))


def _tokenizers(shared: Path, own: Path) -> Iterator[Outcome]:
    good = json.loads((shared / "model" / "tokenizer.json").read_text())
    words, added = good["model"]["vocab"], good["added_tokens"]
    large = {**good, "model": {**good["model"], "vocab": {**words, "cat": 2**31 - 1}}}
    special = {**good, "added_tokens": [{**added[0], "id": 2**31 - 1}, *added[1:]]}
    double = [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}]
    insert = [{"type": "Replace", "pattern": {"Regex": "(?<=e)"}, "content": "e"}]
    table = [{"type": "Precompiled", "precompiled_charsmap": _table("e", "ee")}]
    of_bytes = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]

    def steps(part: str, inner: str, kinds: list[dict]) -> dict:
        return {**good, part: {"type": "Sequence", inner: kinds}}

    grown = "4,194,304 characters of one by what its"
    for name, content, says in (
        ("the id 2^31 - 1 of a word", large, "gives 'cat' the id 2147483647; ids of a vocabulary are at most"),
        ("the id 2^31 - 1 of a special token", special, "the id 2147483647; ids of a vocabulary are at most"),
        ("22 normalizers that double", steps("normalizer", "normalizers", double * 22), f"{grown} normalizer"),
        ("22 normalizers that insert", steps("normalizer", "normalizers", insert * 22), f"{grown} normalizer"),
        ("22 decoders that double", steps("decoder", "decoders", double * 22), f"{grown} decoder"),
        ("22 tables that double", steps("normalizer", "normalizers", table * 22), "by what its normalizer replaces"),
        ("22 times bytes of bytes", steps("pre_tokenizer", "pretokenizers", of_bytes * 22), "tokenizer.json"),
        ("one that doubles, and a table", steps("normalizer", "normalizers", double + table), ""),
    ):
        model = own / name.replace(" ", "-")
        shutil.copytree(shared / "model", model)
        put(model / "tokenizer.json", content)
        seen = _preflight(shared, own, "--model.path", str(model))
        fault = f"model.path: no tokenizer can be loaded: {str(model / 'tokenizer.json')!r}"
        yield Outcome(name, seen, _refused(seen, fault, says) if says else _passed(seen))


def _table(found: str, replaced: str) -> str:
    """SentencePiece's form of a table of replacements, of one letter: a double array, and the texts to put there."""
    units = [0] * 512
    letter = 256 ^ ord(found)
    units[0], units[letter], units[letter ^ 1] = 256 << 10, 1 << 10 | 1 << 8 | ord(found), 1 << 31
    array = b"".join(unit.to_bytes(4, "little") for unit in units)
    return base64.b64encode(len(array).to_bytes(4, "little") + array + replaced.encode() + b"\0").decode()


def _preflight(shared: Path, own: Path, *flags: str) -> Ended:
    return python("rto_fast.train", *base(shared, own / "run"), *flags, "--preflight-only", where=own)


def _refused(seen: Ended, *says: str) -> dict[str, bool]:
    said = {f"says {words}": words in seen.last for words in says}
    one = seen.text.count("rto_fast: error:") == 1 and "Traceback" not in seen.text
    return said | {"status 2": seen.status == 2, "one line": one} | _bounded(seen)


def _passed(seen: Ended) -> dict[str, bool]:
    return {"status 0": seen.status == 0} | _bounded(seen)


def _bounded(seen: Ended) -> dict[str, bool]:
    return {
        f"at most {SECONDS:g} s": seen.seconds < SECONDS,
        f"at most {MEBIBYTES:g} MiB": seen.mebibytes < MEBIBYTES,
    }


def _servers(shared: Path, own: Path) -> Iterator[Outcome]:
    judge = {SLOW: f"no whole reply within {TIMEOUT_S:g} s", 500: "status 500", 200: "a reply of more than 4 MiB"}
    for name, (first, more, pause) in REPLIES.items():
        status = int(first.split()[1])
        with _replying(first, more, pause) as (url, held):
            words = ("--run", shared / "run", "--judge", "llm", "--llm.url", f"{url}/v1", "--llm.model", "m")
            limits = ("--llm.retries", "0", "--llm.timeout", f"{TIMEOUT_S}", "--output", own / name.replace(" ", "-"))
            seen = python("rto_fast.evaluate", *words, *limits, "--device", "cpu", where=own)
        says = judge[pause or status]
        wanted = _refused(seen, "judge: m at http://127.0.0.1:", "does not answer", says)
        yield Outcome(f"a judge: {name}", seen, wanted | _let_go(held, pause))

    for name, (first, more, pause) in REPLIES.items():
        with _replying(first, more, pause) as (url, held):
            words = ("--rto.score.server", f"{url}/get_reward", "--rto.score.retries", "0", "--stages", "sft", "ppo")
            seen = _preflight(shared, own, *words, "--rto.score.timeout", f"{TIMEOUT_S}")
        says = f"no whole answer within {TIMEOUT_S:g} s" if pause else "answered with more than 1049600 bytes"
        wanted = _refused(seen, "rto.score.server: http://127.0.0.1:", says)
        yield Outcome(f"a reward server: {name}", seen, wanted | _let_go(held, pause))


def _let_go(held: list[float], pause: float) -> dict[str, bool]:
    """When the client went away, as the server sees it."""
    least, most = (0.8 * TIMEOUT_S, 2.5 * TIMEOUT_S) if pause else (0.0, 2.5 * TIMEOUT_S)
    return {f"held one connection for {least:g} to {most:g} s, not {held}": len(held) == 1 and least < held[0] < most}


@contextmanager
def _replying(first: bytes, more: bytes, pause: float) -> Iterator[tuple[str, list[float]]]:
    """A server whose replies have no end: its address, and the seconds that each client held out."""
    held = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            began = time.monotonic()
            self.connection.settimeout(20)  # for a client that stays and reads no more
            with suppress(OSError):
                self.connection.sendall(first)
                while time.monotonic() - began < 120:
                    self.connection.sendall(more)
                    time.sleep(pause)
            held.append(time.monotonic() - began)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}", held
