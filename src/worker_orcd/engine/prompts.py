"""Prompts that the front has given the engine: those that wait for a preparer thread, those that have one, and accepted
runs that are yet to begin."""

import threading
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import Begin, Submit, Tokenize


class Prompts:
    """Accepts prompts and hands them out in order. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Submit | Tokenize] = deque()
        self._known: dict[int, CurrentPrompt] = {}
        """By run: all that wait or are being prepared."""
        self._accepted: dict[int, tuple[Submit, array[int]]] = {}
        """By run: without the prompt's text, with its token ids."""

    def put(self, request: Submit | Tokenize) -> None:
        """A prompt arrives."""
        with self._changed:
            self._known[request.run] = CurrentPrompt()
            self._waiting.append(request)
            self._changed.notify()

    def drop(self, run: int) -> None:
        """Forget a prompt. Harmless if it is unknown."""
        with self._changed:
            self._accepted.pop(run, None)
            if run in self._known:
                self._known[run].drop()

    @contextmanager
    def next(self) -> Iterator[tuple[Submit | Tokenize, CurrentPrompt]]:
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

    def accept(self, submitted: Submit, tokens: tuple[int, ...]) -> None:
        """Keep a run: within the block of `next` that has prepared it, unless it was dropped meanwhile; or one whose
        tokens an earlier engine has counted."""
        with self._changed:
            in_hand = self._known.get(submitted.run)
            if in_hand is None or not in_hand.dropped:
                kept = msgspec.structs.replace(submitted, prompt="", tokens=None)
                self._accepted[submitted.run] = (kept, array("i", tokens))

    def begin(self, begin: Begin) -> Run:
        """Hand over an accepted run.

        Raises:
            KeyError: it is not kept here.
        """
        with self._changed:
            submitted, prompt = self._accepted.pop(begin.run)
        return Run.of(submitted, tuple(prompt), begin)
