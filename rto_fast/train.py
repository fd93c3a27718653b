"""python -m rto_fast.train: preference pairs in, an RTO-aligned model out."""

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Sequence

import tyro

from rto_fast.config import Config
from rto_fast.recipe import load_recipe

TRACEBACK = "--traceback"
"""Not a setting of the run: it is taken off the command line before the rest is read, and never written down."""


def parse(args: Sequence[str]) -> Config:
    """Flags over the recipe that --recipe names. Raises ValueError, one line, naming the flag."""
    name = Config.recipe
    for flag, value in zip(args, [*args[1:], ""], strict=False):
        if flag == "--recipe" or flag.startswith("--recipe="):
            name = flag.partition("=")[2] or value
    default = load_recipe(name)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Config,
                args=args,
                default=default,
                prog="python -m rto_fast.train",
                description=f"{Config.__doc__}\n\n{TRACEBACK}: an error shows where in the code it came from.",
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """What tyro's error box says, without its frame and its closing advice."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split(r"\n[─-]{5,}\n", "\n".join(lines))
    meant = re.search(r"Perhaps you meant:\s+(\S+)", box.replace("│", " "))
    said = next(part for part in parts if len(part.split()) > 3)  # in plain ASCII the title is a part of its own
    message = " ".join(said.split()).rstrip(".")
    return message + (f" (did you mean {meant[1]}?)" if meant else "") + "; see --help"


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, or stopped by a signal and saved; 2 bad input (one line on stderr, and behind --traceback
    where it came from); 130 interrupted at once, by a second signal.
    """
    args = list(sys.argv[1:] if args is None else args)
    shown = TRACEBACK in args
    args = [word for word in args if word != TRACEBACK]
    try:
        config = parse(args)
        from rto_fast.interrupt import Stopped

        try:
            if config.compare.seeds:
                from rto_fast.compare import compare

                compare(config)
            else:
                from rto_fast.pipeline import run

                run(config)
        except Stopped:
            print(f"Stopped and saved in {config.folder}; the same command goes on from here.")
    except (ValueError, OSError, FloatingPointError) as error:
        if shown:
            traceback.print_exception(error)
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"rto_fast: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nrto_fast: interrupted. Finished stages and checkpoints are kept in {config.folder}; the same command "
            "goes on from the last of them.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
