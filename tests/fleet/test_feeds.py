"""What a worker tells its routers, and when (fleet/feeds.py). In virtual time."""

import asyncio
import string

import pytest

from tests.fakes import QUICK
from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.world import execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.cancels import Cancel
from worker_orcd.fleet.feeds import LONGEST_PAUSE_SEC
from worker_orcd.fleet.keepers import keepers_of
from worker_orcd.fleet.routing import BLOCK_CHARS
from worker_orcd.worker.now import now


@in_virtual_time
async def test_tokens_of_many_jobs_travel_together_and_ends_do_not_wait() -> None:
    """Steps of 2 ms are reported less often; a cancelled job's end is reported within 10 ms."""
    async with running_fleet(routers=2, workers=1) as fleet:
        (node,) = fleet.nodes
        node.engines[0]._hand.model.decode_ms = 2.0
        one, other = fleet.routers
        streams = [await execute(one, f"job-{n}", max_tokens=400) for n in range(4)]
        await tokens_seen(streams[-1], 3)
        polls, tokens = fleet.called["poll"], streams[0].job.tokens_out
        await asyncio.sleep(0.3)
        polled = fleet.called["poll"] - polls
        assert streams[0].job.tokens_out - tokens > 30
        assert polled < 30, "without the pause it is 36"
        loop, asked = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        await other.cancel("job-0", "cor")
        assert cancelled(await read(streams[0]))
        assert loop.time() - asked < 0.03


@pytest.mark.parametrize("message_sec", [0.001, 0.01])
@in_virtual_time
async def test_a_busy_router_gets_fewer_messages_and_each_end_at_once(message_sec: float) -> None:
    """At most a quarter of its time goes to tokens, however fast they come; a cancel is as quick as messages are."""
    async with running_fleet(routers=1, workers=1, message_sec=message_sec) as fleet:
        (node,), (router,) = fleet.nodes, fleet.routers
        node.engines[0]._hand.model.decode_ms = 2.0
        stream = await execute(router, "job", max_tokens=400)
        await tokens_seen(stream, 3)
        polls = fleet.called["poll"]
        await asyncio.sleep(0.5)
        assert 2 < fleet.called["poll"] - polls < 0.5 / (4 * 2 * message_sec) + 2
        loop, asked = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        await router.cancel("job", "cor")
        assert cancelled(await read(stream))
        assert loop.time() - asked < 0.05 + 8 * message_sec < LONGEST_PAUSE_SEC


@in_virtual_time
async def test_a_keeper_that_has_the_job_stops_it_at_once() -> None:
    """A call earlier than the router can tell it to."""
    async with running_fleet() as fleet:
        names = [node.name for node in fleet.nodes]
        stopped = 0
        for n in range(6):
            stream = await execute(fleet.routers[0], f"job-{n}", max_tokens=400)
            await tokens_seen(stream, 2)
            holder = fleet.holder(f"job-{n}")
            if holder.name in keepers_of(("", f"job-{n}"), names)[:2]:
                asked = asyncio.get_running_loop().time()
                cancel = Cancel(("", f"job-{n}"), "cor", now())
                await holder.host.cancel(cancel.key, "cor", holder.host._keeper.granted, cancel.of_parts())
                assert cancelled(await read(stream))
                assert asyncio.get_running_loop().time() - asked < 0.05, (
                    "its router repeats a stop after 0.1 s"
                )
                stopped += 1
        assert stopped


@in_virtual_time
async def test_a_conversation_stays_at_its_worker_whichever_router_its_turns_reach() -> None:
    """Also a router that comes later knows where it is warm."""
    async with running_fleet(routers=2, workers=4) as fleet:
        for number, letter in enumerate(string.ascii_lowercase[:3]):
            busy = await execute(fleet.routers[0], f"busy-{letter}", max_tokens=400)
            prompt, homes = QUICK + letter * BLOCK_CHARS, set()
            for turn in range(4):
                router = fleet.routers[(number + turn) % 2] if turn < 3 else fleet.add_router()
                await asyncio.sleep(1.1)
                stream = await execute(router, f"turn-{letter}-{turn}", prompt, max_tokens=20)
                homes.add(fleet.holder(stream.job.job_id).name)
                await fleet.routers[0].cancel(busy.job.job_id, "cor")
                await read(stream)
                prompt += letter * 40
            assert len(homes) == 1, letter


@in_virtual_time
async def test_other_routers_learn_at_once_where_a_conversation_is() -> None:
    """Its next turn may follow within the second that a poll lasts."""
    async with running_fleet(routers=1, workers=1) as fleet:
        (node,) = fleet.nodes
        seen = (await node.host.poll("another", 1.0, 0)).number
        polling = asyncio.ensure_future(node.host.poll("another", 1.0, seen))
        loop = asyncio.get_running_loop()
        stream = await execute(fleet.routers[0], "turn", QUICK + "x" * BLOCK_CHARS, max_tokens=2)
        placed = loop.time()
        assert len((await polling).warm) == 1
        assert loop.time() - placed < LONGEST_PAUSE_SEC
        await read(stream)
