"""Attacks from the command line, each with the line that answers it, and the time and memory that it took.

    python -m tests.attack FOLDER [trust inputs links digests unread keys pipe asked rules size serve]

What the tests in other rooms hold of single functions is seen here as a stranger's files meet whole commands: run
folders and recipes that ask for trust, data exchanged under a killed run, planted links, flipped bytes, endless files,
hostile rows, archives, tokenizers, judges, and clients of the server. Ends with status 1 if any is not held off.
"""

import importlib
import sys
from pathlib import Path

from tests.fuzz.place import make_shared

NAMES = ("trust", "inputs", "links", "digests", "unread", "keys", "pipe", "asked", "rules", "size", "serve")


def main(words: list[str]) -> int:
    folder, names = Path(words[0]).resolve(), words[1:] or NAMES
    shared = folder / "shared"
    if not shared.exists():
        make_shared(shared)
    held, all_of_them = 0, 0
    for name in names:
        own = folder / name
        own.mkdir()
        for outcome in importlib.import_module(f"tests.attack.{name}").attacks(shared, own):
            seen = outcome.seen
            print(f"{name}: {outcome.name}: {'ok' if outcome.holds else 'NOT HELD'}, ", end="")
            print(f"status {seen.status}, {seen.seconds:.1f} s of the processor, {seen.mebibytes:,.0f} MiB")
            print(f"    {seen.last[:300]}", flush=True)
            for what, holds in outcome.wanted.items():
                if not holds:
                    print(f"    not so: {what}\n{seen.text[-3000:]}", flush=True)
            held, all_of_them = held + outcome.holds, all_of_them + 1
    print(f"{held} of {all_of_them} held off")
    return held < all_of_them


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
