"""Clients of a fleet while its workers and routers are killed at random: what they received, and when."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.fleet.ray_fleet import ROUTER, WORKER, Client, RayFleet, cancel, clients_of

AT_A_TIME = 8
"""Jobs that are cancelled at a time."""
NEIGHBOURS = 4
NEIGHBOURS_TOKENS = 400
BESIDE_A_DEATH_SEC = 1.0
EACH_GROUP = 4
"""Of so many batches one is cancelled as a group."""
BEGIN_SEC = 3.0
"""How long a group's jobs may take to begin. Those that have not by then are cancelled one by one."""
AGAIN_SEC = 10.0
AGAIN_TOKENS = 3


def shown(name: str, seconds: list[float]) -> str:
    """p50, p99 and the longest, in ms."""
    if not seconds:
        return f"{name}: none"
    ordered = sorted(1000 * one for one in seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"{name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {ordered[-1]:.0f} ms of {len(ordered)}"


@dataclass(eq=False)
class Chaos:
    """Jobs that are cancelled, and neighbours that nobody cancels, until enough cancels and deaths have happened.

    Attributes:
        fleet: the fleet.
        story: the body of each job.
        cancels: how many jobs are cancelled at least.
        deaths: how many processes are killed at least.
        until: monotonic seconds before which it does not end.
        whole: waits until Serve has replaced what was killed.
    """

    fleet: RayFleet
    story: dict[str, Any]
    cancels: int
    deaths: int
    until: float
    whole: Callable[[], Awaitable[None]]
    stopped: list[Client] = field(default_factory=list)
    neighbours: list[Client] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    """Seconds from sending each cancel to its job's terminal event."""
    groups: int = 0
    """How many groups were cancelled."""
    again: list[Client] = field(default_factory=list)
    """Second uses of cancelled jobs' ids, which nobody cancels."""
    beside: list[float] = field(default_factory=list)
    """Those of cancels within a second of a death."""
    killed: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> None:
        """All of it."""
        async with clients_of(self.fleet) as http:
            killing = asyncio.ensure_future(self._kill())
            reading = [asyncio.ensure_future(self._undisturbed(http, n, killing)) for n in range(NEIGHBOURS)]
            while len(self.stopped) < self.cancels or not killing.done():
                first = len(self.stopped)
                batch = [Client(http, f"cancelled-{first + n}", self.story) for n in range(AT_A_TIME)]
                self.stopped += batch
                if first // AT_A_TIME % EACH_GROUP:
                    await asyncio.gather(*map(self._cancelled, batch))
                else:
                    await self._cancelled_together(http, batch)
                await asyncio.gather(*map(self._used_again, batch))
            await killing
            await asyncio.gather(*reading)

    def report(self) -> None:
        """Print the figures."""
        titles = [title for _, title in self.killed]
        lost = sum(not client.events for client in self.stopped)
        print(f"{titles.count(WORKER)} workers and {titles.count(ROUTER)} routers killed")
        print(f"{len(self.stopped)} cancels; {lost} requests were lost with a router before their jobs began")
        print(f"{self.groups} of the cancels were of a group of up to {AT_A_TIME} jobs")
        ends = [client.last.get("stop_reason") for client in self.again if client.ended]
        print(f"{ends.count('length')} of {len(ends)} second uses of cancelled ids reached their ends")
        others = [client.last for client in self.neighbours if client.last.get("stop_reason") != "length"]
        print(
            f"{len(self.neighbours) - len(others)} of {len(self.neighbours)} neighbours reached their ends {others}"
        )
        print(shown("answer to a cancel", self.answered))
        print(shown("terminal event", self.ended))
        print(shown("terminal event, cancels within a second of a death", self.beside))

    async def _cancelled(self, client: Client) -> None:
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(random.uniform(0.0, 1.0))
        await self._cancel(client, running)

    async def _cancel(self, client: Client, running: "asyncio.Future[Client]") -> None:
        asked = time.monotonic()
        self.answered.append(await cancel(client.http, client.job_id) - asked)
        client.cancelled = True
        await running
        self._ended(client, asked)

    async def _cancelled_together(self, http: httpx2.AsyncClient, batch: list[Client]) -> None:
        group = f"group-{self.groups}"
        self.groups += 1
        for client in batch:
            client.body = client.body | {"group": group}
        running = {client: asyncio.ensure_future(client.run()) for client in batch}
        beginning = [asyncio.ensure_future(client.seen(1)) for client in batch]
        await asyncio.wait(beginning, timeout=BEGIN_SEC)
        for task in beginning:
            task.cancel()
        begun = [client for client in batch if client.events]
        asked = time.monotonic()
        self.answered.append(await cancel(http, group, "group") - asked)
        for client in begun:
            client.cancelled = True
        for client in begun:
            await running[client]
            self._ended(client, asked)
        late = [client for client in batch if client not in begun]
        await asyncio.gather(*(self._cancel(client, running[client]) for client in late))

    def _ended(self, client: Client, asked: float) -> None:
        if client.events:
            took = client.ended_at - asked
            self.ended.append(took)
            if any(abs(asked - at) < BESIDE_A_DEATH_SEC for at, _ in self.killed):
                self.beside.append(took)

    async def _used_again(self, client: Client) -> None:
        """Use a cancelled job's id once more, unless it was lost, or is with its router this time."""
        again = Client(client.http, client.job_id, self.story | {"max_tokens": AGAIN_TOKENS})
        until = time.monotonic() + AGAIN_SEC
        while client.ended and not again.events and time.monotonic() < until:
            with contextlib.suppress(httpx2.HTTPError):
                await again.begin()
            await asyncio.sleep(0.05)
        self.again.append(again)

    async def _undisturbed(
        self, http: httpx2.AsyncClient, number: int, killing: "asyncio.Task[None]"
    ) -> None:
        body = self.story | {"max_tokens": NEIGHBOURS_TOKENS}
        again = 0
        while not again or not killing.done():
            self.neighbours.append(await Client(http, f"neighbour-{number}-{again}", body).run())
            again += 1

    async def _kill(self) -> None:
        while len(self.killed) < self.deaths or time.monotonic() < self.until:
            await asyncio.sleep(random.uniform(1.0, 2.0))
            title = ROUTER if len(self.killed) % 2 else WORKER
            self.fleet.kill(title)
            self.killed.append((time.monotonic(), title))
            await self.whole()
