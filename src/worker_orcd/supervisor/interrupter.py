"""Decides when a stop interrupts the engine's step. Pure except for timers.

The engine reads a stop at the latest at the end of the running step. Most steps are short, and an interrupted step must
be computed again for all other jobs in it. So the front sets the interrupt byte only for a stop that the engine does
not confirm within `INTERRUPT_AFTER_SEC`, however long the step was predicted to take. After `OVERDUE_AFTER_SEC` it sets
the byte for overdue stops, which also aborts protected steps.
"""

from collections.abc import Callable
from typing import Protocol

INTERRUPT_AFTER_SEC = 0.005
"""An abort takes 4 to 6 ms more (at most 17 ms, measured). Together this is 9 to 11 ms of the promised 20."""
OVERDUE_AFTER_SEC = 0.085
"""Including the time of an abort, a stop then takes less than 100 ms."""


class Timer(Protocol):
    """The type that `call_later` returns."""

    def cancel(self) -> object:
        """Cancel the call."""


class Interrupter:
    """The stops that one engine has not confirmed, and the timers that interrupt its steps for them."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], Timer],
        interrupt: Callable[[], None],
        interrupt_overdue: Callable[[], None],
    ) -> None:
        """Interrupt with these calls. Each must first put the stop's message into the socket."""
        self._call_later = call_later
        self._interrupt = interrupt
        self._interrupt_overdue = interrupt_overdue
        self._timers: dict[int, tuple[Timer, Timer]] = {}

    def stop_sent(self, run: int) -> None:
        """A stop was sent to the engine. A second one for the same run has no effect."""
        if run not in self._timers:
            self._timers[run] = (
                self._call_later(INTERRUPT_AFTER_SEC, self._interrupt),
                self._call_later(OVERDUE_AFTER_SEC, self._interrupt_overdue),
            )

    def stopped(self, run: int) -> None:
        """The engine has confirmed a stop."""
        for timer in self._timers.pop(run, ()):
            timer.cancel()

    def close(self) -> None:
        """Cancel all timers."""
        for run in list(self._timers):
            self.stopped(run)
