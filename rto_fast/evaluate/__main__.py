"""`python -m rto_fast.evaluate`: who wins, by how much, at equal length. A mistake is one line and exit code 2."""

import sys
from collections.abc import Sequence

from rto_fast import cli
from rto_fast.evaluate.options import Options


def evaluate(args: Sequence[str]) -> None:
    options = cli.parse(Options, args, "python -m rto_fast.evaluate")
    from rto_fast.evaluate.command import run

    run(options)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done; 2 bad input, or a judge that cannot be asked; 130 interrupted."""
    return cli.run(evaluate, args, "Answers and judgements made so far are kept.")


if __name__ == "__main__":
    sys.exit(main())
