"""SIGINT and SIGTERM: while a stage runs the first asks for an end after this step; else a run stops at once.

Once a run has begun nothing is lost either way. The second signal within a stage interrupts without saving.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """Raised where a run may stop: everything that it has done is saved. Nobody takes an interrupt for a failure."""


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


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """Either signal raises Stopped: between stages and in evaluation all that is done is saved already."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    try:
        before = [signal.signal(number, stop) for number in Interrupt.SIGNALS]
    except ValueError:  # signals reach the main thread alone
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(Interrupt.SIGNALS, before, strict=True):
            signal.signal(number, handler)


class Interrupt:
    """`with Interrupt(say) as interrupt:` `interrupt.requested` tells whether a signal came. Who does not stop for it
    finishes what is inside, and is stopped then."""

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

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in zip(self.SIGNALS, self.before, strict=False):
            signal.signal(number, handler)
        if self.requested and kind is None:
            raise Stopped

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.say(f"\n{signal.Signals(number).name}: finishing this step and saving; once more stops at once")
