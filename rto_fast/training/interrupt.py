"""SIGINT and SIGTERM: while a stage runs the first asks for an end after this step; else a run stops at once.

Once a run has begun nothing is lost either way. The second signal within a stage interrupts without saving.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised where a run may stop: everything that it has done is saved. Nobody takes an interrupt for a failure."""


@contextlib.contextmanager
def _met(by: Callable[[int, FrameType | None], object], *signals: signal.Signals) -> Iterator[None]:
    before = {}
    with contextlib.suppress(ValueError):  # signals reach the main thread alone
        before = {number: signal.signal(number, by) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sigterm_interrupts() -> contextlib.AbstractContextManager[None]:
    """SIGTERM is met as SIGINT is: KeyboardInterrupt, and so a sentence on how to go on."""
    return _met(signal.default_int_handler, signal.SIGTERM)


def signals_stop() -> contextlib.AbstractContextManager[None]:
    """Either signal raises Stopped: between stages and in evaluation all that is done is saved already."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    return _met(stop, *SIGNALS)


class Interrupt:
    """`with Interrupt(say) as interrupt:` `interrupt.requested` tells whether a signal came. Who does not stop for it
    finishes what is inside, and is stopped then."""

    def __init__(self, say: Callable[[str], None]):
        self.requested, self.say = False, say
        self.watched = _met(self._handle, *SIGNALS)

    def __enter__(self) -> "Interrupt":
        self.watched.__enter__()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.watched.__exit__(None, None, None)
        if self.requested and kind is None:
            raise Stopped

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.say(f"\n{signal.Signals(number).name}: finishing this step and saving; once more stops at once")
