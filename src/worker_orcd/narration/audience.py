"""Who listens to the narration while it happens: bounded, and never in its way."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from worker_orcd.bounded import BoundedByOwner

BACKLOG = 200
"""Events of before that a new listener gets."""
MAX_KEPT = 2000
"""Events that are kept for listeners to come, of all tenants together."""
MAX_BEHIND = 1000
"""A listener that is further behind loses the oldest."""
MAX_LISTENERS = 32

Told = dict[str, str | int | float | bool | None]
"""One event, as it is written."""


class Heard(NamedTuple):
    """Something that was told, and a mark to go on from; no count, which would say how much others do."""

    mark: str
    event: Told


class Listener:
    """One who listens. Hears what belongs to nobody in particular, and what is the owner's."""

    def __init__(self, owner: str, backlog: list[Heard]) -> None:
        self.owner = owner
        self._waiting: deque[Heard] = deque(backlog, maxlen=MAX_BEHIND)
        self._news = asyncio.Event()
        self._closed = False

    def hear(self, heard: Heard) -> None:
        """Something is told."""
        self._waiting.append(heard)
        self._news.set()

    def close(self) -> None:
        """There is nothing more to hear."""
        self._closed = True
        self._news.set()

    async def listen(self, idle_sec: float) -> AsyncIterator[list[Heard]]:
        """What is told, as many at a time as there are; none when nothing is for so long."""
        while True:
            self._news.clear()
            heard = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if heard:
                yield heard
            elif self._closed:
                return
            else:
                try:
                    async with asyncio.timeout(idle_sec):
                        await self._news.wait()
                except TimeoutError:
                    yield []


class Audience:
    """The listeners, and the latest events. Both are bounded; what is over is taken from the owner that has most."""

    def __init__(self) -> None:
        self._kept: BoundedByOwner[str, Heard] = BoundedByOwner(MAX_KEPT)
        self._listeners: BoundedByOwner[Listener, Listener] = BoundedByOwner(MAX_LISTENERS)
        self._closed = False

    def tell(self, event: Told, owner: str | None) -> None:
        """An event; `owner` is whose request it belongs to, None is nobody's in particular."""
        heard = Heard(secrets.token_hex(6), event)
        self._kept.add(owner, heard.mark, heard)
        for listener in self._listeners:
            if owner in (None, listener.owner):
                listener.value.hear(heard)

    def join(self, owner: str, after: str | None = None) -> Listener | None:
        """Add a listener; None if there are too many and no other owner has more of them than this one.

        A listener that is one too many takes the place of the oldest one of the owner that has most.

        Args:
            owner: who listens.
            after: the mark of the last event that the client has. Without it, or if it is not kept any more, the
                listener gets the latest `BACKLOG` events.
        """
        if self._listeners.is_full_for(owner):
            return None
        backlog = [entry.value for entry in self._kept if entry.owner in (None, owner)]
        known = [place for place, heard in enumerate(backlog, start=1) if heard.mark == after]
        listener = Listener(owner, backlog[known[0] :] if known else backlog[-BACKLOG:])
        if self._closed:
            listener.close()
        for replaced in self._listeners.add(owner, listener, listener):
            replaced.value.close()
        return listener

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        self._listeners.remove(listener.owner, listener)

    def close(self) -> None:
        """End every listener's stream, and those of listeners to come."""
        self._closed = True
        for listener in self._listeners:
            listener.value.close()
