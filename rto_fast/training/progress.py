"""A progress bar with the time that is left."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, unit: str, **options: Any) -> tqdm:
    """A bar on stderr for what takes seconds, gone at its end; a log file gets a line now and then instead.

    options  tqdm's, in the place of these
    """
    terminal = sys.stderr.isatty()
    usual = {"leave": not terminal, "delay": 2, "mininterval": 0.1 if terminal else 15.0}
    return tqdm(total=total, unit=unit, dynamic_ncols=True, **usual | options)
