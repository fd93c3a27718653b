"""A progress bar with the time that is left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int, unit: str) -> Iterator[tqdm]:
    """A bar on stderr for what takes seconds, gone at its end; a log file gets a line now and then instead."""
    terminal = sys.stderr.isatty()
    quiet = {} if terminal else {"mininterval": 15.0}
    with tqdm(total=total, unit=unit, dynamic_ncols=True, leave=not terminal, delay=2, **quiet) as bar:
        yield bar
