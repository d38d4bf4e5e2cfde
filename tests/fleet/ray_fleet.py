"""A fleet on Ray, on this machine, with the scripted engine: real processes that can be killed, and clients that come
back."""

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psutil

from worker_orcd.fleet.launch import ENVIRONMENT, OWN_RAY
from worker_orcd.fleet.options import LOOPBACK
from worker_orcd.testing.harness import free_port, wait_until

ATTEMPTS = 3
"""Attempts to start Ray, which waits 30 s for itself: too little on a busy machine."""
START_SEC = 300.0
END_SEC = 120.0
MARK = "WORKER_ORCD_TEST_FLEET"
"""A variable that all processes of a Ray inherit: the URL of its fleet, or the address of the cluster."""
SCRIPTED = ("worker_orcd.testing.fleet",)
REAL = ("worker_orcd", "fleet")
WORKER = "ray::WorkerActor"
ROUTER = "ray::ServeReplica:worker-orcd:router"

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without certificates: loading them for each look at a fleet would take most of a core."""


@dataclass(frozen=True, slots=True)
class RayFleet:
    """A fleet that runs.

    Attributes:
        url: where it serves HTTP.
        process: what started it.
        log: its output.
        cluster: the Ray cluster that it has joined; None: it has a Ray of its own.
    """

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    cluster: "Cluster | None" = None

    def pids(self, title: str) -> list[int]:
        """The processes of this fleet with such a title."""
        found = []
        ray = self.process if self.cluster is None else self.cluster.process
        for child in psutil.Process(ray.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "".join(child.cmdline()[:1]).startswith(title):
                    found.append(child.pid)
        return found

    def engines(self) -> list[int]:
        """The engine processes that are there, with and without a model: also those that nobody owns any more."""
        return [process.pid for process in self._own() if "scripted_engine" in "".join(process.cmdline())]

    def left(self) -> list[int]:
        """All processes that the fleet, or its cluster, has started and that are there."""
        return [process.pid for process in self._own()]

    def routed(self) -> dict[str, float]:
        """How many jobs each worker was handed, by its id."""
        text = httpx2.get(f"{self.url}/metrics", trust_env=False, timeout=30.0).text
        counts: dict[str, float] = {}
        for labels, value in re.findall(r"^worker_fleet_routes_total{(.*)} (\S+)$", text, re.MULTILINE):
            (worker,) = re.findall(r'worker_id="([^"]*)"', labels)
            counts[worker] = counts.get(worker, 0.0) + float(value)
        return counts

    def _own(self) -> Iterator[psutil.Process]:
        mark = self.url if self.cluster is None else self.cluster.address
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
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
    cluster: "Cluster | None" = None,
) -> Iterator[RayFleet]:
    """Start a fleet whose workers have so many cells each, with a Ray of its own or on a cluster, and end it."""
    port, log = free_port(), folder / "fleet.log"
    command = [sys.executable, "-m", *program, "--port", str(port)]
    command += ["--workers", str(workers), "--routers", str(routers), "--log-format", "json"]
    command += ["--context-length", str(cells), *options]
    url = f"http://127.0.0.1:{port}"
    env = {MARK: url}
    if cluster is not None:
        command += ["--ray-address", cluster.address]
        env = cluster.token
    with started(command, log, env) as process:
        fleet = RayFleet(url, process, log, cluster)
        ready(fleet, workers, cells)
        yield fleet


def ready(fleet: RayFleet, workers: int, cells: int) -> None:
    """Wait until so many workers with so many cells each have loaded their model."""
    wait_until(
        lambda: (
            fleet.process.poll() is not None
            or (fleet.health().get("status") == "healthy" and fleet.whole(workers, workers * cells))
        ),
        within_sec=START_SEC,
        what="a fleet that is ready",
    )
    assert fleet.process.poll() is None, fleet.log.read_text()


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, env: Mapping[str, str], folder: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, from its start to its end by SIGTERM."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, cwd=folder, env={**os.environ, **env}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster of one node, which does not end with a fleet.

    Attributes:
        address: of its head.
        process: `ray start`.
        environment: of Ray's own programs that use it. A fleet needs its token only.
    """

    address: str
    process: "subprocess.Popen[bytes]"
    environment: dict[str, str]

    @property
    def token(self) -> dict[str, str]:
        """The variable with its token, if it asks for one."""
        return {name: value for name, value in self.environment.items() if name == "RAY_AUTH_TOKEN"}

    def comes_up(self) -> bool:
        """Wait until it answers. Returns False if `ray start` gives up."""
        wait_until(lambda: self.process.poll() is not None or self._is_up(), within_sec=START_SEC, what="Ray")
        return self.process.poll() is None

    def _is_up(self) -> bool:
        with contextlib.suppress(RuntimeError):
            return self.nodes() == 1
        return False

    def ask(self, *words: str) -> str:
        """What one of Ray's programs, or a script for Python, says of this cluster."""
        env = {**os.environ, **self.environment, "RAY_ADDRESS": self.address}
        command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        asked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
        if asked.returncode != 0:
            raise RuntimeError(asked.stderr)
        return asked.stdout

    def nodes(self) -> int:
        """How many nodes are active, as `ray status` says."""
        active = self.ask("ray", "status").partition("Active:")[2].partition("Pending:")[0]
        return len(re.findall(r"^ \d+ node_", active, re.MULTILINE))


@contextlib.contextmanager
def running_cluster(folder: Path, *, token: bool = True, cpus: int = 4) -> Iterator[Cluster]:
    """Start Ray on the loopback address with so many CPUs, as it counts them, and end it."""
    # Without these, Ray would use whatever token this user has.
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="ray-")
        )  # Names of sockets are short.
        env = {**LOOPBACK, "RAY_TMPDIR": temporary, **(auth if token else {"RAY_AUTH_MODE": "disabled"})}
        clusters = (stack.enter_context(_started_cluster(folder, cpus, env)) for _ in range(ATTEMPTS))
        cluster = next((one for one in clusters if one.comes_up()), None)
        assert cluster is not None, (folder / "ray.log").read_text()
        yield cluster


@contextlib.contextmanager
def _started_cluster(folder: Path, cpus: int, env: dict[str, str]) -> Iterator[Cluster]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    options = {
        "port": port,
        "num-cpus": cpus,
        "object-store-memory": 100 * 1024 * 1024,
        "include-dashboard": False,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with started(command, folder / "ray.log", {**ENVIRONMENT, **OWN_RAY, **env, MARK: address}) as process:
        yield Cluster(address, process, env)


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
                await self.begin()
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

    async def begin(self) -> None:
        """Ask for the job, and read its stream as far as its connection goes."""
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


async def cancel(http: httpx2.AsyncClient, name: str, what: str = "job_id") -> float:
    """Cancel a job, or a `group` of them, again while no answer comes. Returns when the answer came."""
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            answer = await http.post("/cancel", json={what: name})
            if answer.status_code == 202:
                return time.monotonic()
        await asyncio.sleep(0.1)
