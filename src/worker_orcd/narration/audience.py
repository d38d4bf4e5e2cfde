"""Who listens to the narration while it happens: bounded, and never in its way."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

BACKLOG = 200
"""Events that a new listener is told of what was before."""
MOST_BEHIND = 1000
"""A listener that is further behind loses the oldest."""
MOST_LISTENERS = 32

Told = dict[str, str | int | float | bool | None]
"""One event, as it is written."""


class Listener:
    """One who listens. Hears what belongs to nobody in particular, and what is the owner's."""

    def __init__(self, owner: str, backlog: list[Told]) -> None:
        self.owner = owner
        self._waiting: deque[Told] = deque(backlog, maxlen=MOST_BEHIND)
        self._news = asyncio.Event()
        self._closed = False

    def hear(self, event: Told) -> None:
        """Something is told."""
        self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """There is nothing more to hear."""
        self._closed = True
        self._news.set()

    async def listen(self, idle_sec: float) -> AsyncIterator[list[Told]]:
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
        self._backlog: deque[tuple[str | None, Told]] = deque(maxlen=BACKLOG)
        self._listeners: set[Listener] = set()
        self._closed = False

    def tell(self, event: Told, owner: str | None) -> None:
        """An event; `owner` is whose request it belongs to, None is nobody's in particular."""
        self._backlog.append((owner, event))
        for listener in self._listeners:
            if owner in (None, listener.owner):
                listener.hear(event)

    def join(self, owner: str) -> Listener | None:
        """One more listener; None if there are too many."""
        if len(self._listeners) >= MOST_LISTENERS:
            return None
        listener = Listener(owner, [event for whose, event in self._backlog if whose in (None, owner)])
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
