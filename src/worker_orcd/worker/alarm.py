"""A timer for the next deadline."""

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """One timer for all deadlines. Calls back at the earliest time that was set, in monotonic seconds."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._at = float("inf")

    def set(self, at: float | None) -> None:
        """Call back at `at` (None: never), unless an earlier call is pending."""
        if at is None or at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        delay = max(0.0, at - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer, self._at = None, float("inf")
        self._call()
