"""Open connections, and which of them is closed to make room for a new one."""

from collections.abc import Callable
from typing import Generic, TypeVar

C = TypeVar("C")


class Connections(Generic[C]):
    """All open connections, in three groups.

    Unproven: none of its requests was accepted so far; it may be silent, slow, or a stranger's. Idle: a request was
    accepted and is answered. Busy: an accepted request is being answered, or its answer is still to be taken.

    The oldest unproven one makes room, then the one that has been idle for longest, never a busy one.
    """

    def __init__(self, drop: Callable[[C], None]) -> None:
        """`drop` closes a connection that makes room; it is forgotten before."""
        self._drop = drop
        self._unproven: dict[C, None] = {}
        self._idle: dict[C, None] = {}
        self._busy: dict[C, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._idle) + len(self._busy)

    @property
    def busy(self) -> int:
        """How many are busy."""
        return len(self._busy)

    def add(self, connection: C, bound: int) -> bool:
        """Add a new one; another one makes room for it if there are as many as the bound allows.

        Returns:
            False if all of them are busy; then it is not added.
        """
        while len(self) >= bound:
            group = self._unproven or self._idle
            if not group:
                return False
            oldest = next(iter(group))
            del group[oldest]
            self._drop(oldest)
        self._unproven[connection] = None
        return True

    def admit(self, connection: C) -> None:
        """A request on it was accepted and is about to be answered. Changes nothing for one that had to go."""
        for group in (self._unproven, self._idle):
            if connection in group:
                del group[connection]
                self._busy[connection] = None

    def answered(self, connection: C) -> None:
        """Its answer is given and taken. Changes nothing for one that is not busy."""
        if connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = None

    def remove(self, connection: C) -> None:
        """It is closed."""
        for group in (self._unproven, self._idle, self._busy):
            group.pop(connection, None)
