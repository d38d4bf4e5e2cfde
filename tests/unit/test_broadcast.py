"""Listeners of log events and the events kept for them: no tenant takes another tenant's room (G9, G10)."""

import asyncio

from worker_orcd.narration.broadcast import BACKLOG, MAX_KEPT, MAX_LISTENERS, Broadcast, Listener

SILENT_SEC = 0.001


def received(listener: Listener) -> list[object]:
    """Events that are queued for a listener now."""

    async def listen() -> list[object]:
        async for batch in listener.listen(SILENT_SEC):
            return [one.event["number"] for one in batch]
        return ["closed"]

    return asyncio.run(listen())


def joined(broadcast: Broadcast, owner: str, after: str | None = None) -> Listener:
    """Add a listener."""
    listener = broadcast.join(owner, after)
    assert listener is not None
    return listener


def test_a_tenants_events_push_out_only_its_own() -> None:
    """Anna's events and those for all tenants are still kept after any number of Berta's."""
    broadcast = Broadcast()
    broadcast.emit({"number": 1}, "anna")
    broadcast.emit({"action": "ready", "number": 2}, None)
    for number in range(2 * MAX_KEPT):
        broadcast.emit({"number": -number}, "berta")
    assert received(joined(broadcast, "anna")) == [1, 2]
    assert len(received(joined(broadcast, "berta"))) == BACKLOG


def test_a_tenants_listeners_shut_out_only_its_own() -> None:
    """A tenant with fewer listeners takes the place of the oldest listener of the tenant with most; a further
    listener of that tenant is refused."""
    broadcast = Broadcast()
    bertas = [joined(broadcast, "berta") for _ in range(MAX_LISTENERS)]
    assert broadcast.join("berta") is None
    anna = joined(broadcast, "anna")
    assert received(bertas[0]) == ["closed"]
    broadcast.emit({"action": "ready", "number": 1}, None)
    assert received(bertas[1]) == received(anna) == [1]
    assert broadcast.join("berta") is None, "anna's listener is not to be pushed out again"
    broadcast.leave(bertas[0])
    assert broadcast.join("berta") is None, "its place is anna's"
    broadcast.leave(bertas[1])
    assert broadcast.join("berta") is not None
