"""A fleet in virtual time: real routers and workers in one process, whose calls take time and may get no answer.

Every argument and answer is pickled, as between processes: nothing is shared by accident. With `message_sec`, each
process handles one message at a time, so that its own work delays what it does next.
"""

import asyncio
import io
import pickle
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes import QUICK
from tests.simulation.engine import VirtualEngine, Weather
from worker_orcd.fleet.host import WorkerHost
from worker_orcd.fleet.peers import Peer, PeerLost
from worker_orcd.fleet.relay import Relay
from worker_orcd.fleet.router import Router
from worker_orcd.fleet.wire import Refusal
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import Event
from worker_orcd.jobs.request import Ceilings, ExecuteRequest
from worker_orcd.narration import Narrator
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream, KeepAlive
from worker_orcd.worker.worker import Worker

POLICY = Policy(ceilings=Ceilings(max_tokens_out=400), max_queue=50, drain_sec=1.0)
LATENCY_SEC = (0.0005, 0.005)
TOKEN_MS = 20.0


class Process:
    """The messages of one process, which it handles one after the other."""

    def __init__(self, message_sec: float) -> None:
        self.busy_sec = 0.0
        self._message_sec = message_sec
        self._free_at = 0.0

    async def handle(self) -> None:
        """Send or receive a message, after those that came before."""
        if self._message_sec:
            loop = asyncio.get_running_loop()
            self.busy_sec += self._message_sec
            self._free_at = max(self._free_at, loop.time()) + self._message_sec
            await asyncio.sleep(self._free_at - loop.time())


class Node:
    """One worker."""

    def __init__(
        self, number: int, chance: random.Random, weather: Weather, message_sec: float = 0.0
    ) -> None:
        self.name = f"worker-{number}"
        self.process = Process(message_sec)
        self.engines: list[VirtualEngine] = []
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.held: dict[str, asyncio.Event] = {}
        """Calls of these methods wait, each for its event."""
        self.failing: set[str] = set()
        """Calls of these methods fail, as by a fault in the worker."""
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chance = chance
        self._weather = weather
        relay = Relay()
        narrator = Narrator.configure(self.name, log_format="json", stream=io.StringIO(), broadcast=relay)
        self.worker = Worker(
            POLICY, self._launch, narrator, worker_id=self.name, model_path="m", epoch=self.name
        )
        self.host = WorkerHost(self.worker, narrator, self.die)
        relay.log = self.host.log
        self.host.start()

    async def _launch(self, listener: EngineListener) -> Engine:
        engine = VirtualEngine(listener, self._chance, self._weather, 100)
        engine._hand.model.decode_ms = TOKEN_MS
        self.engines.append(engine)
        return engine

    def die(self) -> None:
        """As SIGKILL does."""
        if not self.death.done():
            self.death.set_result(None)

    def lose_engine_for_good(self) -> None:
        """Its engine dies, and no other one starts."""
        self._weather = Weather(fails_to_start=1.0)
        self.engines[-1].die()

    @property
    def live(self) -> list[str]:
        """Ids of its live jobs."""
        return [job.job_id for job in self.worker.dispatcher.tracker]


class Connection:
    """One router's connection with a worker."""

    def __init__(self, node: Node, router: Process, called: Counter[str], chance: random.Random) -> None:
        self._node = node
        self._router = router
        self._called = called
        self._chance = chance
        self.cut = False
        self._never = asyncio.Event()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call it, unless it is dead. What a frozen worker is asked, it does when it thaws."""
        self._called[method] += 1
        serving = asyncio.ensure_future(self._served(method, pickle.dumps(arguments)))
        waited: set[asyncio.Future[Any]] = {serving, self._node.death}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._node.death.done():
            raise PeerLost
        return pickle.loads(serving.result())  # noqa: S301  # Its own.

    def send(self, method: str, *arguments: Any) -> None:
        """Call it without waiting."""
        asyncio.ensure_future(self.call(method, *arguments)).add_done_callback(lambda done: done.exception())

    async def _served(self, method: str, arguments: bytes) -> bytes:
        await self._router.handle()
        await asyncio.sleep(self._chance.uniform(*LATENCY_SEC))
        await self._node.thawed.wait()
        if method in self._node.held:
            await self._node.held[method].wait()
        await self._node.process.handle()
        if self.cut:
            await self._never.wait()
        if method in self._node.failing:
            return pickle.dumps(Refusal.of(JobError(ErrorCode.INTERNAL, f"{method} failed")))
        answer = pickle.dumps(await getattr(self._node.host, method)(*pickle.loads(arguments)))  # noqa: S301
        await self._node.thawed.wait()
        await asyncio.sleep(self._chance.uniform(*LATENCY_SEC))
        await self._router.handle()
        return answer


class Fleet:
    """Routers and workers."""

    def __init__(
        self,
        routers: int,
        workers: int,
        *,
        seed: int = 0,
        weather: Weather | None = None,
        message_sec: float = 0.0,
    ) -> None:
        self.chance = random.Random(seed)
        self.weather = weather or Weather()
        self.called: Counter[str] = Counter()
        """Calls of workers, by method."""
        self._message_sec = message_sec
        self.nodes = [Node(number, self.chance, self.weather, message_sec) for number in range(workers)]
        self.narrators: list[Narrator] = []
        self.routers: list[Router] = []
        self.connections: dict[str, list[Connection]] = {}
        self.processes: dict[str, Process] = {}
        for _ in range(routers):
            self.add_router()

    def find(self) -> None:
        """Let all routers know all workers."""
        for router in self.routers:
            peers: dict[str, Peer] = {node.name: self._connect(router, node) for node in self.nodes}
            router.found(peers)

    def add_router(self, *, finds: bool = True) -> Router:
        """Start one more router. `finds`: it knows the workers at once."""
        name = f"router-{len(self.narrators)}"
        narrator = Narrator.configure(name, log_format="json", stream=io.StringIO())
        router = Router(POLICY, narrator, ModelNames.of("m"), name)
        self.narrators.append(narrator)
        self.routers.append(router)
        self.connections[router.name] = []
        self.processes[router.name] = Process(self._message_sec)
        if finds:
            self.find()
        return router

    def add_worker(self) -> Node:
        """Start one more worker."""
        self.nodes.append(Node(len(self.nodes), self.chance, self.weather, self._message_sec))
        self.find()
        return self.nodes[-1]

    def kill_router(self, router: Router) -> None:
        """End a router without a word: nothing it says arrives any more."""
        self.routers.remove(router)
        for connection in self.connections[router.name]:
            connection.cut = True
        router.close()

    def holder(self, job_id: str) -> Node:
        """The living worker that has a job."""
        (node,) = [node for node in self.nodes if job_id in node.live and not node.death.done()]
        return node

    def _connect(self, router: Router, node: Node) -> Connection:
        connection = Connection(node, self.processes[router.name], self.called, self.chance)
        self.connections[router.name].append(connection)
        return connection

    def messages(self) -> int:
        """Calls of workers so far, without polls."""
        return sum(number for method, number in self.called.items() if method != "poll")

    def busy_sec(self) -> float:
        """How long the routers have handled messages, added up."""
        return sum(process.busy_sec for process in self.processes.values())

    async def ready(self) -> None:
        """Wait until every worker has an engine, and every router knows it."""
        for node in self.nodes:
            await node.worker.ready.wait()
        await asyncio.sleep(1.1)

    async def close(self) -> None:
        """End everything."""
        for router in self.routers:
            router.close()
        for node in self.nodes:
            node.thawed.set()
            await node.host.drain()


@asynccontextmanager
async def running_fleet(
    routers: int = 2,
    workers: int = 3,
    *,
    seed: int = 0,
    weather: Weather | None = None,
    message_sec: float = 0.0,
) -> AsyncIterator[Fleet]:
    """A fleet that is ready."""
    fleet = Fleet(routers, workers, seed=seed, weather=weather, message_sec=message_sec)
    await fleet.ready()
    try:
        yield fleet
    finally:
        await fleet.close()


async def execute(
    router: Router, job_id: str, prompt: str = QUICK, owner: str = "", **given: Any
) -> JobStream:
    """Start one job."""
    fields: dict[str, Any] = {"job_id": job_id, "prompt": prompt, "ignore_eos": True, "max_tokens": 40}
    request = ExecuteRequest(**fields | given)
    (stream,) = await router.execute([request], f"cor-{job_id}", owner)
    stream.join()
    return stream


async def read(stream: JobStream, start: int = 0) -> list[Event]:
    """All its events, to the last."""
    return [event async for batch in stream.read(KeepAlive(600.0), start) for _, event in batch]


async def tokens_seen(stream: JobStream, number: int) -> None:
    """Wait until so many tokens are there."""
    while stream.job.tokens_out < number:
        assert await stream.changed(30.0), "no token comes"
