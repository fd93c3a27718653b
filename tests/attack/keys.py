"""JSON rows of very many keys are read in time linear in them, and a key given twice among them is still found."""

from collections.abc import Iterator
from pathlib import Path

from tests.attack.command import Ended, Outcome, done, python, refused
from tests.fuzz.place import base

LIMIT = 120.0
"""Seconds until a command that takes too long is killed: the larger row once took longer."""
MORE_SECONDS, MEBIBYTES = 5.0, 1500.0
"""The first: what a row of 200,000 keys may cost beyond one of three: a second, and the noise of busy cores."""


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    pairs = (shared / "pairs.jsonl").read_text()

    def read(command: str, row: str, name: str = "rows.jsonl") -> Ended:
        file = own / name
        file.write_text(pairs + row + "\n")
        if command == "data":
            words = ["--path", str(file), "--model.path", str(shared / "model")]
        else:
            words = [*base(shared, own / "run"), "--data.path", str(file), "--preflight-only"]
        return python(f"rto_fast.{command}", *words, where=own, limit=LIMIT)

    for command, says in (("data", "kept 25 of 25 rows"), ("train", "pairs: 21 used")):
        usual = read(command, _row(0))
        yield Outcome(f"control: {command} with three keys", usual, done(usual, says))
        for count in (20_000, 200_000):
            row = _row(count)
            seen = read(command, row)
            wanted = done(seen, says) | _no_dearer(seen, usual)
            yield Outcome(f"{command} with {count:,} keys, {len(row) // 1000:,} kB", seen, wanted)
            for place, twice in (("first", "k0"), ("last", f"k{count - 1}")):
                seen = read(command, _row(count, f',"{twice}":1'))
                wanted = refused(seen, f"line 25: key '{twice}' appears twice in one object")
                name = f"{command} with {count:,} keys, the {place} of them twice"
                yield Outcome(name, seen, wanted | _no_dearer(seen, usual))
    inside = '{"prompt": "what is it", "chosen": "it is grey", "rejected": "brown", "about": [' + _row(
        200_000, ',"k7":0'
    )
    seen = read("data", inside + "]}")
    wanted = refused(seen, "line 25: key 'k7' appears twice in one object") | _no_dearer(seen, usual)
    yield Outcome("data with 200,000 keys within a row, one of them twice", seen, wanted)


def _row(count: int, behind: str = "") -> str:
    keys = "".join(f',"k{i}":0' for i in range(count))
    return f'{{"prompt": "what is the colour of a cat", "chosen": "it is grey", "rejected": "brown"{keys}{behind}}}'


def _no_dearer(seen: Ended, usual: Ended) -> dict[str, bool]:
    return {
        f"at most {MORE_SECONDS:.0f} s more than with three keys": seen.seconds < usual.seconds + MORE_SECONDS,
        f"less than {MEBIBYTES:,.0f} MiB": seen.mebibytes < MEBIBYTES,
    }
