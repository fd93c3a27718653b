"""A progress bar with the time that is left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int, unit: str) -> Iterator[tqdm]:
    """A bar on stderr that vanishes at the end; a log file gets a line now and then instead."""
    quiet = {} if sys.stderr.isatty() else {"mininterval": 15.0}
    with tqdm(total=total, unit=unit, dynamic_ncols=True, leave=False, **quiet) as bar:
        yield bar
