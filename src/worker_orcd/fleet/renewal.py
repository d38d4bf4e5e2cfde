"""Renews a router's leases while it is too busy to poll.

A router that handles a thousand requests in one moment polls its workers late, and they would take it for dead. A
thread of its own says for it that it is alive, as long as its event loop does anything at all.
"""

import contextlib
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

RENEW_SEC = 1.0
STUCK_SEC = 15.0
"""A router whose loop does nothing for so long is as good as dead."""


class Renewal:
    """Calls a function from a thread, each second, while an event loop makes progress."""

    def __init__(
        self, loop: AbstractEventLoop, renew: Callable[[], None], *, every_sec: float = RENEW_SEC
    ) -> None:
        """`renew` is called in the thread. The loop's handler gets its failures, and it is called again."""
        self._loop = loop
        self._renew = renew
        self._every_sec = every_sec
        self._progress_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Renew no more."""
        self._closed.set()

    def _progress(self) -> None:
        self._progress_at = time.monotonic()

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            while not self._closed.wait(self._every_sec):
                if time.monotonic() - self._progress_at <= STUCK_SEC:
                    self._try_to_renew()
                self._loop.call_soon_threadsafe(self._progress)

    def _try_to_renew(self) -> None:
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001  # Of whatever is called; the loop reports it.
            failure = {"message": "leases were not renewed", "exception": error}
            self._loop.call_soon_threadsafe(self._loop.call_exception_handler, failure)
