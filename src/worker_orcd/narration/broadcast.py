"""Distributes log events to live listeners. Bounded, and never waits for a listener."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.narration.action import EventFields
from worker_orcd.narration.visibility import concerns_worker, for_tenants

BACKLOG = 200
"""The most past events that a new listener gets."""
MAX_KEPT = 2000
"""The most events kept for future listeners, of all tenants together."""
MAX_BEHIND = 1000
"""The most events that wait for one listener. Beyond this, it loses the oldest."""
MAX_LISTENERS = 32


class MarkedEvent(NamedTuple):
    """An event, and its mark, with which a listener can resume.

    The mark is random: a count would reveal how active other tenants are.
    """

    mark: str
    event: EventFields


class _Kept(NamedTuple):
    """An event kept for future listeners."""

    mark: str
    event: EventFields
    for_tenants: EventFields | None
    """The part of the event that other tenants may see."""


class Listener:
    """A listener. An operator gets every event; a tenant gets its own events and those for every tenant."""

    def __init__(self, owner: str, *, operator: bool) -> None:
        self.owner = owner
        self._operator = operator
        self._waiting: deque[MarkedEvent] = deque(maxlen=MAX_BEHIND)
        self._news = asyncio.Event()
        self._closed = False

    def seen(self, kept: _Kept, owner: str | None) -> MarkedEvent | None:
        """The part of an owner's event that this listener may see; None if it may not see the event."""
        event = kept.event if self._operator or owner == self.owner else kept.for_tenants
        return None if event is None else MarkedEvent(kept.mark, event)

    def push(self, received: MarkedEvent) -> None:
        """Queue an event for this listener."""
        self._waiting.append(received)
        self._news.set()

    def close(self) -> None:
        """End this listener's stream."""
        self._closed = True
        self._news.set()

    async def listen(self, idle_sec: float) -> AsyncIterator[list[MarkedEvent]]:
        """Yield batches of new events, and an empty batch after `idle_sec` without events."""
        while True:
            self._news.clear()
            received = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if received:
                yield received
            elif self._closed:
                return
            else:
                try:
                    async with asyncio.timeout(idle_sec):
                        await self._news.wait()
                except TimeoutError:
                    yield []


def _latest(events: list[tuple[str | None, MarkedEvent]]) -> list[MarkedEvent]:
    latest: BoundedByOwner[str, MarkedEvent] = BoundedByOwner(BACKLOG)
    for owner, received in events:
        latest.add(owner, received.mark, received)
    return [entry.value for entry in latest]


class Broadcast:
    """The listeners and the latest events. Both are bounded; beyond a bound, the owner with the most loses the
    oldest."""

    def __init__(self) -> None:
        self._kept: BoundedByOwner[str, _Kept] = BoundedByOwner(MAX_KEPT)
        self._listeners: BoundedByOwner[Listener, Listener] = BoundedByOwner(MAX_LISTENERS)
        self._closed = False

    def emit(self, event: EventFields, owner: str | None) -> None:
        """Pass an event to the listeners. `owner`: the owner of its request; None if it belongs to no owner.

        An event about the worker as a whole belongs to no owner, even if an owner's request caused it.
        """
        if concerns_worker(event):
            owner = None
        kept = _Kept(secrets.token_hex(6), event, None if owner is not None else for_tenants(event))
        self._kept.add(owner, kept.mark, kept)
        for listener in self._listeners:
            received = listener.value.seen(kept, owner)
            if received is not None:
                listener.value.push(received)

    def join(self, owner: str, after: str | None = None, *, operator: bool = False) -> Listener | None:
        """Add a listener. Returns None if there are too many, and no other owner has more than this one.

        Beyond the bound, a new listener replaces the oldest one of the owner with the most.

        Args:
            owner: the listener's owner.
            after: the mark of the last event that the client has. Without it, or if that event is not kept any more,
                the listener gets the latest `BACKLOG` events. For an operator, each owner's events get a share of
                these.
            operator: whether the listener is an operator.
        """
        if self._listeners.is_full_for(owner):
            return None
        listener = Listener(owner, operator=operator)
        backlog = [
            (entry.owner, received)
            for entry in self._kept
            if (received := listener.seen(entry.value, entry.owner))
        ]
        known = [place for place, (_, received) in enumerate(backlog, start=1) if received.mark == after]
        for received in (one for _, one in backlog[known[0] :]) if known else _latest(backlog):
            listener.push(received)
        if self._closed:
            listener.close()
        for replaced in self._listeners.add(owner, listener, listener):
            replaced.value.close()
        return listener

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        self._listeners.remove(listener.owner, listener)

    def close(self) -> None:
        """End the streams of all listeners, and of later ones at once."""
        self._closed = True
        for listener in self._listeners:
            listener.value.close()
