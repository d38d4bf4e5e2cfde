"""A fleet on Ray, on this machine, with the scripted engine: real processes that can be killed, and clients that come
back."""

import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psutil

from worker_orcd.testing.harness import free_port, wait_until

START_SEC = 300.0
MARK = "WORKER_ORCD_TEST_FLEET"
"""A variable that all processes of a fleet inherit: its URL."""
SCRIPTED = ("worker_orcd.testing.fleet",)
REAL = ("worker_orcd", "fleet")
WORKER = "ray::WorkerActor"
ROUTER = "ray::ServeReplica:worker-orcd:router"

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without certificates: loading them for each look at a fleet would take most of a core."""


@dataclass(frozen=True, slots=True)
class RayFleet:
    """A fleet that runs."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def pids(self, title: str) -> list[int]:
        """The processes of this fleet with such a title."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "".join(child.cmdline()[:1]).startswith(title):
                    found.append(child.pid)
        return found

    def engines(self) -> list[int]:
        """The engine processes that are there, with and without a model: also those that nobody owns any more."""
        return [process.pid for process in self._own() if "scripted_engine" in "".join(process.cmdline())]

    def left(self) -> list[int]:
        """All processes that the fleet has started and that are there."""
        return [process.pid for process in self._own()]

    def _own(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.url and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def kill(self, title: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one of them. Returns its process id."""
        pid = random.choice(self.pids(title))
        os.kill(pid, number)
        return pid

    def health(self) -> dict[str, Any]:
        """`GET /health`; empty while nobody answers."""
        with contextlib.suppress(httpx2.HTTPError, ValueError):
            answer = httpx2.get(f"{self.url}/health", timeout=5.0, trust_env=False, verify=_NO_TLS)
            shown: dict[str, Any] = answer.json()
            return shown
        return {}

    def whole(self, workers: int, cells: int) -> bool:
        """Whether so many workers with so many cells in all are there."""
        return self.health().get("kv_cells_total") == cells and len(self.pids(WORKER)) >= workers


@contextlib.contextmanager
def running_ray_fleet(
    folder: Path,
    workers: int = 3,
    routers: int = 2,
    *options: str,
    program: Sequence[str] = SCRIPTED,
    cells: int = 16384,
) -> Iterator[RayFleet]:
    """Start a fleet whose workers have so many cells each, and end it."""
    port, log = free_port(), folder / "fleet.log"
    command = [sys.executable, "-m", *program, "--port", str(port)]
    command += ["--workers", str(workers), "--routers", str(routers), "--log-format", "json"]
    command += ["--context-length", str(cells), *options]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        env = {**os.environ, MARK: url}
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=env)
    fleet = RayFleet(url, process, log)
    try:
        wait_until(
            lambda: (
                process.poll() is not None
                or (fleet.health().get("status") == "healthy" and fleet.whole(workers, workers * cells))
            ),
            within_sec=START_SEC,
            what="a fleet that is ready",
        )
        assert process.poll() is None, log.read_text()
        yield fleet
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@dataclass(eq=False)
class Client:
    """One job's client, which comes back when its connection breaks."""

    http: httpx2.AsyncClient
    job_id: str
    body: dict[str, Any]
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Of each its id, its name and its data."""
    arrivals: list[float] = field(default_factory=list)
    breaks: int = 0
    cancelled: bool = False
    """Whether a cancel was answered: then a request that was lost with its router is not sent again."""

    async def seen(self, number: int) -> None:
        """Wait until so many events are there."""
        while len(self.events) < number:  # noqa: ASYNC110  # A list has no event to wait for.
            await asyncio.sleep(0.02)

    async def run(self) -> "Client":
        """Read the job's stream to its terminal event."""
        while not self.ended:
            try:
                # Its job may have run, and even ended, without its seeing anything: it is not asked for again then.
                if self.breaks and await self._came_back():
                    continue
                if self.cancelled and self.breaks:
                    return self
                await self._begin()
            except httpx2.HTTPError:
                self.breaks += 1
            if not self.ended:
                await asyncio.sleep(0.1)
        return self

    @property
    def ended(self) -> bool:
        """Whether the terminal event is there."""
        return bool(self.events) and self.events[-1][1] in ("end", "error")

    @property
    def last(self) -> dict[str, Any]:
        """The data of the terminal event."""
        return self.events[-1][2]

    @property
    def ended_at(self) -> float:
        """When its last event arrived."""
        return self.arrivals[-1]

    @property
    def largest_gap(self) -> float:
        """The longest time between two of its events, in seconds."""
        return max(after - before for before, after in pairwise(self.arrivals))

    @property
    def text(self) -> str:
        """Its text. There is no gap in the events, and none comes twice."""
        assert [int(id_.rpartition(".")[2]) for id_, _, _ in self.events] == list(range(len(self.events)))
        assert len({id_.rpartition(".")[0] for id_, _, _ in self.events}) == 1
        assert sum(name in ("end", "error") for _, name, _ in self.events) == 1
        return "".join(data["t"] for _, name, data in self.events if name == "token")

    async def _begin(self) -> None:
        body = {"job_id": self.job_id} | self.body
        async with self.http.stream("POST", "/execute", json=body) as answer:
            if answer.status_code == 200:
                await self._read(answer)
            self.breaks += not self.ended

    async def _came_back(self) -> bool:
        """Read on. Returns whether there is such a job."""
        headers = {"Last-Event-ID": self.events[-1][0]} if self.events else {}
        async with self.http.stream("GET", f"/jobs/{self.job_id}/events", headers=headers) as answer:
            if answer.status_code == 200:
                await self._read(answer)
            return answer.status_code != 404 or bool(self.events)

    async def _read(self, answer: httpx2.Response) -> None:
        name, data = "", {}
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = json.loads(line[6:])
            elif line.startswith("id: "):
                self.events.append((line[4:], name, data))
                self.arrivals.append(time.monotonic())


@contextlib.asynccontextmanager
async def clients_of(fleet: RayFleet, most: int = 500) -> AsyncIterator[httpx2.AsyncClient]:
    """At most so many connections with a fleet."""
    limits = httpx2.Limits(max_connections=most, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=fleet.url, timeout=60.0, limits=limits, trust_env=False, verify=_NO_TLS
    ) as http:
        yield http


async def cancel(http: httpx2.AsyncClient, job_id: str) -> float:
    """Cancel a job, again while no answer comes. Returns when the answer came."""
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            answer = await http.post("/cancel", json={"job_id": job_id})
            if answer.status_code == 202:
                return time.monotonic()
        await asyncio.sleep(0.1)
