"""Workers as Ray actors, and how routers reach them.

A worker is an actor of its own beside its Serve replica: Serve's handles choose a replica by load, while a router has
to reach one certain worker, and needs an answer whatever else that worker is doing. Ray lists the workers by name, so
there is no registry that could fail.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worker_orcd import narration
from worker_orcd.fleet.host import WorkerHost
from worker_orcd.fleet.options import FleetOptions
from worker_orcd.fleet.peers import Peer, PeerLost
from worker_orcd.fleet.relay import Relay
from worker_orcd.fleet.wire import Refusal
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.supervisor.early import LLAMA_ENGINE, EarlyProcess
from worker_orcd.supervisor.launcher import EngineLauncher
from worker_orcd.worker.assembly import CheckedModel, EngineStart, assemble

NAMESPACE = "worker-orcd"
CALLS = 100_000
"""Calls that a worker serves at a time. Far above what there can be, as the worker itself admits jobs: a
cancel behind a full actor would wait for another call's end."""
UNAVAILABLE_SEC = 0.25


class WorkerActor:
    """One worker's process."""

    def __init__(
        self, options: FleetOptions, worker_id: str, environment: dict[str, str], threads: int
    ) -> None:
        """`threads`: compute threads, unless the options name a number."""
        os.environ.update(environment)
        self._options = options
        self._threads = threads
        self._id = worker_id
        self._host: WorkerHost | None = None
        self._started = asyncio.Event()
        self._launcher: EngineLauncher | None = None

    async def start(self) -> None:
        """Start loading the model."""
        settings = self._options.settings
        threads = settings.threads if "threads" in settings.model_fields_set else self._threads
        settings = settings.model_copy(update={"worker_id": UUID(self._id), "threads": threads})
        module = self._options.engine_module
        real = module == LLAMA_ENGINE
        model = CheckedModel.of(settings) if real else CheckedModel(str(settings.model))
        broadcast = Relay()
        narrator = narration.Narrator.configure(self._id, log_format="json", broadcast=broadcast)
        worker, self._launcher = assemble(settings, model, narrator, EngineStart(module, _start_module))
        self._host = WorkerHost(worker, narrator, _die)
        broadcast.log = self._host.log
        self._host.start()
        self._started.set()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker's host. Failures are values: an exception might not be readable elsewhere."""
        await self._started.wait()  # Routers find the actor before it has started.
        try:
            return await getattr(self._host, method)(*arguments)
        except Exception as error:  # noqa: BLE001  # Whatever it is.
            return Refusal.of(
                JobError(ErrorCode.INTERNAL, f"{method} failed: {type(error).__name__}: {error}")
            )

    async def drain(self) -> None:
        """Let jobs finish for the drain time, stop the rest, and end the engine and the spare one."""
        if self._host is not None and self._launcher is not None:
            await self._host.drain()
            await self._launcher.close()

    async def shutdown_asked(self) -> Any:
        """Answered when a client asks for the end of the fleet."""
        return await self.call("shutdown_asked")

    async def death(self) -> None:
        """Never answers: a call that fails when this process ends."""
        await asyncio.Event().wait()


class RayPeer:
    """A router's connection with one worker."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of its `WorkerHost`; again if Ray cannot say whether the worker has got the call. Every method
        may be called again.

        Raises:
            PeerLost: its process is dead.
        """
        while True:
            try:
                return await self.actor.call.remote(method, *arguments)
            except ActorUnavailableError:
                await asyncio.sleep(UNAVAILABLE_SEC)  # Whoever waits for the answer says how long.
            except RayActorError as error:
                raise PeerLost(str(error)) from None

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting, from any thread. The call may be lost."""
        with contextlib.suppress(RayError):
            self.actor.call.remote(method, *arguments)


def start_worker(options: FleetOptions, worker_id: str) -> Any:
    """Start a worker's actor on this node, with the CPUs of this replica. It ends with this process."""
    replica = ray.get_runtime_context()
    here = NodeAffinitySchedulingStrategy(replica.get_node_id(), soft=False)
    threads = max(1, int(replica.get_assigned_resources().get("CPU", 1)))
    devices = {
        name: value for name in ("CUDA_VISIBLE_DEVICES",) if (value := os.environ.get(name)) is not None
    }
    actor = ray.remote(WorkerActor).options(
        name=worker_id,
        namespace=NAMESPACE,
        num_cpus=0,
        max_concurrency=CALLS,
        scheduling_strategy=here,
        max_restarts=0,
    )
    return actor.remote(options, worker_id, devices, threads)


def worker_actors(known: dict[str, Peer]) -> list[Any]:
    """The workers that Ray lists and that were not known yet. Blocks for a moment."""
    before = set(known)
    known_workers(known)
    return [peer.actor for name, peer in known.items() if name not in before and isinstance(peer, RayPeer)]


def known_workers(known: dict[str, Peer]) -> None:
    """Bring the known workers up to date: those that Ray lists. Blocks for a moment."""
    every = ray.util.list_named_actors(all_namespaces=True)
    names = {listed["name"] for listed in every if listed["namespace"] == NAMESPACE}
    for name in known.keys() - names:
        del known[name]
    for name in names - known.keys():
        with contextlib.suppress(ValueError):  # It has died meanwhile.
            known[name] = RayPeer(ray.get_actor(name, namespace=NAMESPACE))


async def _start_module(module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> EarlyProcess:
    """Run a module as a process, from a thread that is not the main one: asyncio's own way needs that one."""
    return EarlyProcess([sys.executable, "-m", module, *arguments], list(descriptors))


def _die() -> None:
    """End this process at once."""
    os._exit(1)
