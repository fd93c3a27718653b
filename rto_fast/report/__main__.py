"""`python -m rto_fast.report runs/A [runs/B ...]`: one self-contained HTML file about one or several runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rto_fast import cli
from rto_fast.report.page import default_output, write_report


@dataclass(frozen=True)
class Report:
    """Write one HTML file that shows what runs did: learning curves with bands over seeds, win rates, what the reward
    is made of, KL against reward, token credit, answers side by side, time and memory. It opens offline, on a phone
    too. Give several seeds of one configuration to have them pooled, several configurations to have them compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, as rto_fast.train leaves them; the folder of a comparison stands for all runs inside it."""
    output: Path | None = None
    """Where the page goes. Default: report.html in the run's folder, or in the folder that the runs share."""


def report(args: Sequence[str]) -> None:
    options = cli.parse(Report, args, "python -m rto_fast.report")
    if not options.runs:
        raise ValueError("report: name at least one run folder, e.g. python -m rto_fast.report runs/quickstart")
    print(write_report(options.runs, options.output or default_output(options.runs)))


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input."""
    return cli.run(report, args, "Nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
