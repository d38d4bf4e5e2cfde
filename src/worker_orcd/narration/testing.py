"""Captures log events in tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker_orcd.narration import narrator


@contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """Give the list of events emitted while the block runs, by any narrator in any thread of this process.

    Nothing is written or broadcast meanwhile. Values are as they were emitted: neither rounded nor shortened.
    """
    events: list[dict[str, Any]] = []
    narrator.captures.append(events)
    try:
        yield events
    finally:
        # By identity: two captures with equal events are equal.
        narrator.captures[:] = [other for other in narrator.captures if other is not events]
