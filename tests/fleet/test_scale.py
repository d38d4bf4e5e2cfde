"""What a cancel and a placing cost in a fleet of 4, 64 and 1,024 workers (docs/fleet.md, "Scale").

Real routers and workers in virtual time, where each process handles one message at a time.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.fleet.test_fleet import cancelled, in_virtual_time
from tests.fleet.world import Fleet, execute, read, running_fleet, tokens_seen
from worker_orcd.fleet.keepers import keepers_of
from worker_orcd.fleet.routing import BLOCK_CHARS, MAX_BLOCKS, WarmPrefixes, chain_of, choose
from worker_orcd.fleet.stopping import live_use
from worker_orcd.jobs.request import ExecuteRequest
from worker_orcd.jobs.stop_request import StopReason

MESSAGE_SEC = 0.0003
"""CPU time of one message in the process that sends or receives it. A call of a Ray actor has two; on a busy machine
they took 0.8 to 1.1 ms on either side."""
JOBS = 30
ROUTERS = 2
SIZES = [4, 64, pytest.param(1024, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one thing costs on average: messages between processes, and time."""

    messages: float
    p50_ms: float
    longest_ms: float

    @classmethod
    def of(cls, messages: int, seconds: list[float]) -> "Cost":
        """Of these trials."""
        ordered = sorted(1000 * one for one in seconds)
        return cls(messages / len(ordered), ordered[len(ordered) // 2], ordered[-1])

    def __str__(self) -> str:
        return f"{self.messages:.1f} messages, p50 {self.p50_ms:.1f} ms, longest {self.longest_ms:.1f} ms"


async def broadcast(fleet: Fleet, job_id: str) -> None:
    """Cancel a job as a router without keepers would: ask all workers for it."""
    peers = fleet.routers[1]._peers
    use = await live_use(peers, ("", job_id), lambda _: True)
    assert use is not None
    remote = peers.get(use.worker)
    assert remote is not None
    await remote.call("stop", ("", job_id), use.incarnation, StopReason.CLIENT, "cor")


async def cost_of_stops(fleet: Fleet, how: str) -> tuple[Cost, Cost]:
    """Of placing jobs at one router, and of cancelling them at another one, up to the terminal event at the first."""
    loop = asyncio.get_running_loop()
    placed: list[float] = []
    ended: list[float] = []
    to_place = to_stop = 0
    for n in range(JOBS):
        job_id, began, before = f"{how}-{n}", loop.time(), fleet.messages()
        stream = await execute(fleet.routers[0], job_id, max_tokens=400)
        placed.append(loop.time() - began)
        await tokens_seen(stream, 2)
        to_place += fleet.messages() - before
        asked, before = loop.time(), fleet.messages()
        cancelling = fleet.routers[1].cancel(job_id, "cor") if how == "lookup" else broadcast(fleet, job_id)
        stopping = asyncio.ensure_future(cancelling)
        assert cancelled(await read(stream))
        ended.append(loop.time() - asked)
        await stopping
        await asyncio.sleep(0.05)
        to_stop += fleet.messages() - before
    return Cost.of(to_place, placed), Cost.of(to_stop, ended)


@pytest.mark.parametrize("workers", SIZES)
@in_virtual_time
async def test_a_cancel_costs_as_much_in_a_large_fleet(workers: int) -> None:
    """By looking its job up; asking all workers costs a message for each."""
    async with running_fleet(ROUTERS, workers, message_sec=MESSAGE_SEC) as fleet:
        placing, lookup = await cost_of_stops(fleet, "lookup")
        _, asking = await cost_of_stops(fleet, "broadcast")
        polls, busy = fleet.called["poll"], fleet.busy_sec()
        await asyncio.sleep(5.0)
        polls, busy = fleet.called["poll"] - polls, fleet.busy_sec() - busy
    print(f"\n{workers} workers, {ROUTERS} routers, {MESSAGE_SEC * 1000} ms a message")
    print(
        f"placing a job: {placing}", f"cancel, looked up: {lookup}", f"cancel, all asked: {asking}", sep="\n"
    )
    print(f"idle: {polls / 5.0 / ROUTERS:.0f} polls/s at each router, busy {busy / 5.0 / ROUTERS:.1%}")
    assert placing.messages <= 3
    assert lookup.messages <= 4
    assert asking.messages >= workers


@pytest.mark.parametrize("workers", [4, 64, 1024])
def test_choosing_a_worker_takes_little_time(workers: int) -> None:
    """A router's own CPU time for a prompt of the longest chain that it compares, however many workers know it."""
    warm = WarmPrefixes()
    loads = {f"worker-{n}": n / workers for n in range(workers)}
    chains = {}
    for name, letter in {"new": "n", "warm at one": "1", "warm at all": "a"}.items():
        request = ExecuteRequest(job_id="job", prompt=letter * BLOCK_CHARS * MAX_BLOCKS)
        chains[name] = chain_of(request, "")
    warm.sent("worker-1", chains["warm at one"])
    for name in loads:
        warm.sent(name, chains["warm at all"])
    for name, chain in chains.items():
        took_ms = cpu_ms(functools.partial(choose, loads, warm, chain))
        print(f"{workers} workers, {name}: {took_ms:.2f} ms to choose")
        assert took_ms < 0.5 + 0.02 * workers
    print(f"{workers} workers: {cpu_ms(lambda: keepers_of(('', 'job'), loads)):.2f} ms to find the keepers")


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU time of a piece of work: the least of ten trials."""
    trials = []
    for _ in range(10):
        began = time.process_time()
        work()
        trials.append(1000 * (time.process_time() - began))
    return min(trials)
