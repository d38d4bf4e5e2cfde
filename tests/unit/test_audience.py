"""Listeners of the narration and what is kept for them: no tenant takes another's (G9, G10)."""

import asyncio

from worker_orcd.narration.audience import BACKLOG, MAX_KEPT, MAX_LISTENERS, Audience, Listener

SILENT_SEC = 0.001


def heard(listener: Listener) -> list[object]:
    """What waits for a listener now."""

    async def listen() -> list[object]:
        async for batch in listener.listen(SILENT_SEC):
            return [one.event["number"] for one in batch]
        return ["closed"]

    return asyncio.run(listen())


def joined(audience: Audience, owner: str, after: str | None = None) -> Listener:
    """One more listener."""
    listener = audience.join(owner, after)
    assert listener is not None
    return listener


def test_a_tenants_events_push_out_only_its_own() -> None:
    """Anna's events are there after any number of Berta's; so are everybody's."""
    audience = Audience()
    audience.tell({"number": 1}, "anna")
    audience.tell({"action": "ready", "number": 2}, None)
    for number in range(2 * MAX_KEPT):
        audience.tell({"number": -number}, "berta")
    assert heard(joined(audience, "anna")) == [1, 2]
    assert len(heard(joined(audience, "berta"))) == BACKLOG


def test_a_tenants_listeners_shut_out_only_its_own() -> None:
    """Who has fewer takes the place of the oldest of who has most, whose stream ends; who has most is refused."""
    audience = Audience()
    bertas = [joined(audience, "berta") for _ in range(MAX_LISTENERS)]
    assert audience.join("berta") is None
    anna = joined(audience, "anna")
    assert heard(bertas[0]) == ["closed"]
    audience.tell({"action": "ready", "number": 1}, None)
    assert heard(bertas[1]) == heard(anna) == [1]
    assert audience.join("berta") is None, "anna's listener is not to be pushed out again"
    audience.leave(bertas[0])
    assert audience.join("berta") is None, "its place is anna's"
    audience.leave(bertas[1])
    assert audience.join("berta") is not None
