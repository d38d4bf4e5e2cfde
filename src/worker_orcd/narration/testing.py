"""Captures log events in tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker_orcd.narration import narrator


@contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """Yield the list of events that any narrator emits while the block runs, in any thread of this process.

    Meanwhile, no event is written or broadcast. Values are neither rounded nor shortened.
    """
    events: list[dict[str, Any]] = []
    narrator.captures.append(events)
    try:
        yield events
    finally:
        # Compares by identity, because two captures with equal events are equal.
        narrator.captures[:] = [other for other in narrator.captures if other is not events]
