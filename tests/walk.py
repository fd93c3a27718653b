"""The way of one datum through the house: `python -m tests.walk pair` or `python -m tests.walk answer`.

pair     a preference row, from its file to the DPO loss
answer   an answer of the policy, from the sampler to the optimizer step

A tiny run is watched. A hop is a call of one of this project's functions that is handed the datum: as text, as token
ids, or within lists, dictionaries and dataclasses of them; a packed batch's own methods are none. Printed are the hops,
caller to callee, each once and in the order of the first; then how many there are, in how many files, and which file
the datum comes back to most often.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from rto_fast.packing import PackedBatch
from rto_fast.train import main
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs

ROOT = f"{Path(__file__).parents[1]}/"
MARK = "cow so grey cow so grey cow so"
"""The answer that is followed; no other one holds these words in this order."""
DEPTH = 3
"""Containers within containers that are looked into: a batch holds its packed tensors, a run not the rows it learns."""


class Walk:
    """Hops of a datum that is known by its text, by its token ids, or by both."""

    def __init__(self, text: str | None, ids: list[int] | None):
        self.text, self.ids = text, ids
        self.hops: dict[tuple[str, str], None] = {}

    def watch(self, frame: FrameType, event: str, value: Any) -> None:
        if not _ours(frame):
            return
        if event == "return" and self.ids is None and _name(frame).endswith("decode.py:rollout"):
            self.ids = max((a.response for a in value), key=len)
        elif event == "call" and any(self._holds(x, 0) for x in list(frame.f_locals.values())):
            caller = frame.f_back
            while caller is not None and not _ours(caller):
                caller = caller.f_back
            if caller is not None:
                self.hops.setdefault((_name(caller), _name(frame)))

    def _holds(self, x: Any, depth: int) -> bool:
        if isinstance(x, str):
            return self.text is not None and self.text in x
        if isinstance(x, torch.Tensor):
            return x.dtype == torch.int64 and x.dim() == 1 and self._has(x.tolist())
        if isinstance(x, list) and x and type(x[0]) is int:
            return self._has(x)
        if depth == DEPTH:
            return False
        inside: list[Any] = []
        if isinstance(x, dict):
            inside = list(x.values())
        elif isinstance(x, list | tuple):
            inside = list(x)
        elif is_dataclass(x) and not isinstance(x, type):
            inside = [getattr(x, f.name, None) for f in fields(x)]
        return any(self._holds(y, depth + 1) for y in inside)

    def _has(self, ids: list[int]) -> bool:
        n = len(self.ids or ())
        return n > 0 and any(ids[i : i + n] == self.ids for i in range(len(ids) - n + 1))

    @property
    def files(self) -> set[str]:
        return {name.partition(":")[0] for hop in self.hops for name in hop}

    @property
    def returns(self) -> tuple[str, int]:
        """The file that hands the datum to most functions of other files, each time to be given back, and how often."""
        places = [(caller.partition(":")[0], callee.partition(":")[0]) for caller, callee in self.hops]
        return Counter(a for a, b in places if a != b).most_common(1)[0]


def _ours(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_name.startswith("<") or isinstance(frame.f_locals.get("self"), PackedBatch):
        return False
    return code.co_filename.startswith((f"{ROOT}rto_fast/", f"{ROOT}kernels/"))


def _name(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.removeprefix(ROOT)}:{frame.f_code.co_name}"


def walk(what: str, folder: Path) -> Walk:
    """Runs DPO alone (`pair`) or RTO alone (`answer`) on tiny models in an empty folder."""
    base = write_model(folder / "model")
    rows = write_pairs(folder / "pairs.jsonl", 100).read_text().splitlines()
    # behind the rows that preflight looks at
    rows[90] = json.dumps({"prompt": "what is the colour of a cow", "chosen": MARK, "rejected": "brown"})
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "tiny.toml").write_text(SETTINGS.replace("prompts = 4", "prompts = 0"))
    given = {"--recipe": folder / "tiny.toml", "--model.path": base, "--data.path": folder / "pairs.jsonl"}
    given |= {"--output": folder / "run", "--sft.model": base, "--device": "cpu", "--data.held-out": "0"}
    words = [str(word) for pair in given.items() for word in pair]
    if what == "pair":
        made = Walk(MARK, [WORDS.index(word) for word in MARK.split()])
        words += ["--stages", "dpo"]
    else:
        made = Walk(None, None)
        words += ["--dpo.model", str(base), "--stages", "rto", "--rto.iterations", "1"]
    with _watched(made), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if main(words):
            raise RuntimeError("the run failed")
    return made


@contextlib.contextmanager
def _watched(made: Walk) -> Iterator[None]:
    sys.setprofile(made.watch)
    try:
        yield
    finally:
        sys.setprofile(None)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        found = walk(sys.argv[1], Path(name))
    for caller, callee in found.hops:
        print(f"{caller} -> {callee}")
    print(f"{len(found.hops)} hops, {len(found.files)} files; most returns: {found.returns[1]} to {found.returns[0]}")
