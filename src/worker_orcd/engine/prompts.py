"""Prompts that the front has given the engine: those that wait for a preparer thread, and those that have one."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.protocol.messages import Prepare


class Prompts:
    """Takes prompts in and hands them out in order. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Prepare] = deque()
        self._known: dict[int, CurrentPrompt] = {}
        """All prompts that wait or are being prepared, by run."""

    def put(self, request: Prepare) -> None:
        """A prompt arrives."""
        with self._changed:
            self._known[request.run] = CurrentPrompt()
            self._waiting.append(request)
            self._changed.notify()

    def drop(self, run: int) -> None:
        """The job of this prompt has ended. Harmless if it is prepared, or was never here."""
        with self._changed:
            if run in self._known:
                self._known[run].drop()

    @contextmanager
    def next(self) -> Iterator[tuple[Prepare, CurrentPrompt]]:
        """Wait for the next prompt; the calling thread prepares it in this block."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting))
            request = self._waiting.popleft()
            in_hand = self._known[request.run]
        try:
            yield request, in_hand
        finally:
            with self._changed:
                del self._known[request.run]
