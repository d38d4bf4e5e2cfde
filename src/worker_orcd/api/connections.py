"""Open connections. Decides which one is closed to make room for a new one."""

from collections.abc import Callable
from typing import Generic, TypeVar

C = TypeVar("C")


class Connections(Generic[C]):
    """All open connections, in three groups.

    - Unproven: no request was accepted so far; the client may be silent, slow, or without a key.
    - Idle: a request was accepted, and its response is complete.
    - Busy: an accepted request is being answered, or the client has not read the whole response.

    The oldest unproven connection is closed first, then the one idle for longest, but never a busy one.
    """

    def __init__(self, drop: Callable[[C], None]) -> None:
        """`drop` closes a connection. It is called after the connection was removed here."""
        self._drop = drop
        self._unproven: dict[C, None] = {}
        self._idle: dict[C, None] = {}
        self._busy: dict[C, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._idle) + len(self._busy)

    @property
    def busy(self) -> int:
        """Number of busy connections."""
        return len(self._busy)

    def add(self, connection: C, bound: int) -> bool:
        """Add a new connection. If the bound is reached, close another one first.

        Returns:
            False if all connections are busy; then the new one is not added.
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
        """Mark a connection as busy: a request was accepted. Does nothing if the connection was closed here."""
        for group in (self._unproven, self._idle):
            if connection in group:
                del group[connection]
                self._busy[connection] = None

    def answered(self, connection: C) -> None:
        """Mark a busy connection as idle: the client has read the whole response. Does nothing if it is not busy."""
        if connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = None

    def remove(self, connection: C) -> None:
        """Remove a connection that has closed."""
        for group in (self._unproven, self._idle, self._busy):
            group.pop(connection, None)
