"""Prompts that the front has sent to the engine: waiting for a tokenizer thread, in preparation, or accepted and
waiting for `Begin`."""

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
    """Takes prompts and hands them to the tokenizer threads in order. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Submit | Tokenize] = deque()
        self._known: dict[int, CurrentPrompt] = {}
        """By run: the prompts that wait or are being prepared."""
        self._accepted: dict[int, tuple[Submit, array[int]]] = {}
        """By run: the request without the prompt's text, and the prompt's token ids."""

    def put(self, request: Submit | Tokenize) -> None:
        """Add a prompt to prepare."""
        with self._changed:
            self._known[request.run] = CurrentPrompt()
            self._waiting.append(request)
            self._changed.notify()

    def drop(self, run: int) -> None:
        """Drop a prompt. Harmless if it is unknown."""
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
        """Keep a run until `begin`. Called within the block of `next` that has prepared the run (and then ignored if
        the run was dropped meanwhile), or for a run whose tokens an earlier engine has counted."""
        with self._changed:
            in_hand = self._known.get(submitted.run)
            if in_hand is None or not in_hand.dropped:
                kept = msgspec.structs.replace(submitted, prompt="", tokens=None)
                self._accepted[submitted.run] = (kept, array("i", tokens))

    def begin(self, begin: Begin) -> Run:
        """Return an accepted run that is to begin, and stop keeping it.

        Raises:
            KeyError: no such run is kept.
        """
        with self._changed:
            submitted, prompt = self._accepted.pop(begin.run)
        return Run(submitted, tuple(prompt), begin.max_tokens, begin.generated)
