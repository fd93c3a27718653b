"""A run in which nothing moves any more says so and ends, in place of holding a machine until somebody looks."""

import os
import sys
import threading
import time

EXIT_STATUS = 3


class StallGuard:
    """Ends the process when `alive` was not called for so many minutes; 0 = never.

    A thread that hangs in a GPU kernel or in a socket cannot be interrupted, so the process exits at once; finished
    stages and checkpoints are on the disk.
    """

    def __init__(self, minutes: float, stage: str):
        self.seconds, self.stage = 60 * minutes, stage
        self.doing, self.since = "starting", time.monotonic()
        self._over = threading.Event()

    def alive(self, doing: str) -> None:
        """Something was just done; `doing` names what comes next."""
        self.doing, self.since = doing, time.monotonic()

    def __enter__(self) -> "StallGuard":
        if self.seconds > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self.seconds / 4, 5.0)):
            still = time.monotonic() - self.since
            if still > self.seconds:
                print(
                    f"\nrto_fast: error: guards.stall_minutes: {self.stage} has done nothing for {still / 60:.3g} "
                    f"minutes ({self.doing}); ended. The same command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_STATUS)
