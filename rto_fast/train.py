"""python -m rto_fast.train: preference pairs in, an RTO-aligned model out."""

import os
import sys
from collections.abc import Callable, Sequence

from rto_fast import cli, tasks
from rto_fast.config import NEUTRAL, Config, neutral, trust
from rto_fast.config.recipe import load_recipe

PREFLIGHT_ONLY = "--preflight-only"
"""Not a setting of the run: check everything, print the table and stop before the first step."""


FROM = "--from"
"""Not a setting either: a run whose finished stages are taken over."""


MORE = (
    "With --model.path and --data.path, settings that suit them are chosen; with neither, and no --recipe, the "
    "embedded quickstart runs.",
    f"{PREFLIGHT_ONLY}: check everything, print what was measured, and stop.",
    f"{FROM} RUN: use the finished stages of another run's folder, where settings, data and models are the "
    "same, in place of training them; name a new folder with --output.",
)


def _chosen(config: Config) -> Config:
    from rto_fast.pipeline.facts import look

    config, lines = neutral.choose(config, *look(config))
    for line in lines:
        print(line)
    return config


def parse(
    args: Sequence[str],
    prog: str = "python -m rto_fast.train",
    more: Sequence[str] = MORE,
    chosen: Callable[[Config], Config] = _chosen,
) -> Config:
    """Flags over the recipe that --recipe names, or over what suits the model and data that they name.

    chosen  fills in what a run without a recipe leaves open; train's says what it chose, by the model and the data

    Raises ValueError, one line, naming the flag.
    Code is run for flags alone: a recipe that asks for it is refused unless the flags ask for the same.
    """
    cli.check_words(args)
    name = NEUTRAL if neutral.is_own(args, tasks.names()) or not {"-h", "--help"}.isdisjoint(args) else Config.recipe
    for flag, value in zip(args, [*args[1:], ""], strict=False):
        if flag == "--recipe" or flag.startswith("--recipe="):
            name = flag.partition("=")[2] or value
    recipe = neutral.base() if name == NEUTRAL else load_recipe(name)
    config = _parse(args, recipe, prog, more)
    if trust.asked(config):
        # what is left when the recipe asks for no code is what the flags ask for
        trust.check_granted(config, _parse(args, trust.without_code(recipe), prog, more), f"recipe {name}")
    return chosen(config) if name == NEUTRAL else config


def _parse(args: Sequence[str], default: Config, prog: str, more: Sequence[str]) -> Config:
    return cli.parse(Config, args, prog, default=default, onoff=False, more=more)


def _without_from(args: Sequence[str]) -> tuple[list[str], str | None]:
    """The other words, and the folder that --from names."""
    words, other = [], None
    rest = iter(args)
    for word in rest:
        if word == FROM or word.startswith(f"{FROM}="):
            other = word.partition("=")[2] if "=" in word else next(rest, "")
            if not other or other.startswith("--"):
                raise ValueError(f"{FROM}: wanted the folder of a run, got {other or 'nothing'!r}")
        else:
            words.append(word)
    return words, other


def train(args: Sequence[str]) -> None:
    cli.check_words(args)
    words, other = _without_from(args)
    config = parse([word for word in words if word != PREFLIGHT_ONLY])
    from rto_fast.training.interrupt import Stopped, sigterm_interrupts

    try:
        with sigterm_interrupts():
            if config.compare.seeds and PREFLIGHT_ONLY not in args:
                from rto_fast.pipeline.compare import compare

                compare(config, take_from=other)
            else:
                from rto_fast.pipeline.run import run

                run(config, preflight_only=PREFLIGHT_ONLY in args, take_from=other)
    except Stopped:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first alone speaks
            print(f"Stopped and saved in {config.folder}; the same command goes on from here.")


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, or stopped by a signal and saved; 2 bad input, one line on stderr (--traceback shows where
    it came from); 3 nothing moved for guards.stall_minutes; 130 interrupted before it began, or at once, by a second
    signal.
    """
    return cli.run(
        train,
        args,
        "Finished stages and checkpoints are kept in the run's folder; the same command goes on from the last of them.",
    )


if __name__ == "__main__":
    sys.exit(main())
