"""A prompt that the engine is preparing: whether it renders slowly, and whether it was dropped."""

import contextlib
import threading
from collections.abc import Callable, Iterator


class CurrentPrompt:
    """Shared by the thread that prepares a prompt and the thread that drops it. Thread-safe.

    Attributes:
        slow: called with True when rendering takes long, and with False when rendering is over. In between, the
            engine waits for a process that has limits of its own.
    """

    def __init__(self) -> None:
        self.slow: Callable[[bool], None] = lambda _: None
        self._lock = threading.Lock()
        self._dropped = False
        self._hang_up: Callable[[], None] = lambda: None

    def drop(self) -> None:
        """End the process that renders the prompt, because its job has ended."""
        with self._lock:
            self._dropped = True
            self._hang_up()

    @contextlib.contextmanager
    def rendering_slowly(self) -> Iterator[None]:
        """In this block, the engine waits longer than usual for a process that has limits of its own."""
        self.slow(True)
        try:
            yield
        finally:
            self.slow(False)

    @contextlib.contextmanager
    def connected(self, hang_up: Callable[[], None]) -> Iterator[None]:
        """In this block, a process renders, which `hang_up` ends."""
        with self._lock:
            self._hang_up = hang_up
            if self._dropped:
                hang_up()
        try:
            yield
        finally:
            with self._lock:
                self._hang_up = lambda: None

    @property
    def dropped(self) -> bool:
        """Whether the prompt's job has ended."""
        return self._dropped
