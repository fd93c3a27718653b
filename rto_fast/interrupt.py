"""SIGINT and SIGTERM: while a stage runs the first asks for an end after this step; else, and the second, at once."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """Raised where a run may stop: everything it has done is saved."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is met as SIGINT is: KeyboardInterrupt, and so a sentence on how to go on."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # signals reach the main thread alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupt:
    """`with Interrupt(say) as interrupt:` `interrupt.requested` tells whether a signal came."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None]):
        self.requested = False
        self.say = say

    def __enter__(self) -> "Interrupt":
        try:
            self.before = [signal.signal(number, self._handle) for number in self.SIGNALS]
        except ValueError:  # signals reach the main thread alone
            self.before = []
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.SIGNALS, self.before, strict=False):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.say(f"\n{signal.Signals(number).name}: finishing this step and saving; once more stops at once")
