"""Who listens to the narration while it happens: bounded, and never in its way."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

BACKLOG = 200
"""Events that a new listener is told of what was before."""
MOST_BEHIND = 1000
"""A listener that is further behind loses the oldest."""
MOST_LISTENERS = 32

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
        self._waiting: deque[Heard] = deque(backlog, maxlen=MOST_BEHIND)
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
    """All who listen, and what was told lately."""

    def __init__(self) -> None:
        self._backlog: deque[tuple[str | None, Heard]] = deque(maxlen=BACKLOG)
        self._listeners: set[Listener] = set()
        self._closed = False

    def tell(self, event: Told, owner: str | None) -> None:
        """An event; `owner` is whose request it belongs to, None is nobody's in particular."""
        heard = Heard(secrets.token_hex(6), event)
        self._backlog.append((owner, heard))
        for listener in self._listeners:
            if owner in (None, listener.owner):
                listener.hear(heard)

    def join(self, owner: str, after: str | None = None) -> Listener | None:
        """One more listener; None if there are too many.

        Args:
            owner: who listens.
            after: the mark of what was heard last. Without it, or if it is not known any more, all is told that is.
        """
        if len(self._listeners) >= MOST_LISTENERS:
            return None
        backlog = [heard for whose, heard in self._backlog if whose in (None, owner)]
        known = [place for place, heard in enumerate(backlog, start=1) if heard.mark == after]
        listener = Listener(owner, backlog[known[0] :] if known else backlog)
        if self._closed:
            listener.close()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """It listens no more."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Nothing more is told: everybody may go."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
