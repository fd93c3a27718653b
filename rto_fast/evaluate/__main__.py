"""`python -m rto_fast.evaluate`: who wins, by how much, at equal length. A mistake is one line and exit code 2."""

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Sequence

import tyro

from rto_fast.evaluate.options import Options


def parse(args: Sequence[str] | None = None) -> Options:
    """Flags as options. ValueError, one line, for a flag or a value that is none."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Options, args=args, prog="python -m rto_fast.evaluate", description=inspect.getdoc(Options))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    # tyro's box without its frame, its title (a part of its own in plain ASCII) and its closing advice
    box = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    lines = [line.strip(" │|") for line in box.splitlines() if not line.startswith(("╭", "╰", "+-"))]
    parts = [" ".join(part.split()) for part in re.split(r"\n[─-]{5,}\n", "\n".join(lines))]
    message = max(parts[:2], key=lambda part: len(part) > 20)
    raise ValueError(re.sub(r"^Error parsing \w+: ", "", message).rstrip(".") + "; see --help")


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done; 2 bad input or a judge that cannot be asked (one line on stderr, RTO_FAST_TRACEBACK=1 shows
    where); 130 interrupted."""
    try:
        options = parse(args)
        from rto_fast.evaluate.command import run

        run(options)
    except (ValueError, OSError) as error:
        if os.environ.get("RTO_FAST_TRACEBACK") == "1":
            raise
        print(f"rto_fast: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrto_fast: interrupted; answers and judgements made so far are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
