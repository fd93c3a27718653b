"""python -m rto_fast.train: preference pairs in, an RTO-aligned model out."""

import os
import sys
from collections.abc import Sequence

import tyro

from rto_fast.config import Config
from rto_fast.recipe import load_recipe


def parse(args: Sequence[str]) -> Config:
    """Flags over the recipe that --recipe names."""
    name = next((a.split("=", 1)[1] for a in args if a.startswith("--recipe=")), None)
    if "--recipe" in args[:-1]:
        name = args[args.index("--recipe") + 1]
    default = load_recipe(name or Config.recipe)
    return tyro.cli(
        Config, args=args, default=default, prog="python -m rto_fast.train", config=(tyro.conf.FlagConversionOff,)
    )


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input (one line on stderr; RTO_FAST_TRACEBACK=1 shows where), 130 interrupted."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        config = parse(args)
        from rto_fast.pipeline import run

        run(config)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("RTO_FAST_TRACEBACK") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"rto_fast: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nrto_fast: interrupted. Finished stages are kept in {config.folder}; the same command goes on from "
            "there (the stage that was running starts over).",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
