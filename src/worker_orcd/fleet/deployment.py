"""The fleet as a Ray Serve application: routers behind Serve's HTTP proxy, and workers."""

import asyncio
import contextlib
import os
import secrets
import threading
import time
import uuid
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.api import RunTarget
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker_orcd import narration
from worker_orcd.api.access import Access
from worker_orcd.api.app import create_app
from worker_orcd.api.keys import ApiKeys
from worker_orcd.fleet.actors import NAMESPACE, known_workers, start_worker, worker_actors
from worker_orcd.fleet.joining import ClusterAddress
from worker_orcd.fleet.options import FleetOptions, FleetRefused
from worker_orcd.fleet.peers import Peer
from worker_orcd.fleet.renewal import Renewal
from worker_orcd.fleet.router import Router
from worker_orcd.worker.assembly import policy_of
from worker_orcd.worker.model_names import ModelNames

APP_NAME = "worker-orcd"
LOOK_FOR_WORKERS_SEC = 0.5
LOOK_FOR_DEPLOYMENT_SEC = 0.5
REQUESTS = 100_000
"""Requests that a router serves at a time: workers admit jobs, and a cancel never waits for a place."""
HEALTH_SEC = 2.0
HEALTH_TIMEOUT_SEC = 10.0
OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Ray's shared memory. Messages of a fleet are small."""
ATTEMPTS = 3
"""Attempts to start Ray, which waits 30 s for itself: too little on a busy machine."""
CPUS_BESIDE = 2
"""What Ray counts beyond one CPU for each worker."""


class WorkerReplica:
    """Has one worker run beside it, and ends when that one does, so that Serve starts another."""

    async def __init__(self, options: FleetOptions) -> None:  # type: ignore[misc]  # Serve awaits it.
        self._actor = start_worker(options, str(uuid.uuid4()))
        await self._actor.start.remote()
        self._watch = asyncio.create_task(self._end_with_it())

    async def check_health(self) -> None:
        """Fail when the worker does not answer."""
        async with asyncio.timeout(HEALTH_TIMEOUT_SEC):
            await self._actor.call.remote("look", ("", ""))

    async def __del__(self) -> None:
        """Drain the worker."""
        self._watch.cancel()
        await self._actor.drain.remote()

    async def _end_with_it(self) -> None:
        with contextlib.suppress(Exception):  # However it ends.
            await self._actor.death.remote()
        os._exit(1)


class RouterReplica:
    """Serves the HTTP API for all workers."""

    def __init__(self, options: FleetOptions, _workers: Any) -> None:
        settings = options.settings
        self._options = options
        name = f"router-{secrets.token_hex(6)}"
        self._narrator = narration.Narrator.configure(name, log_format="json")
        names = ModelNames.of(str(settings.model or ""), settings.model_alias)
        self._router = Router(policy_of(settings), self._narrator, names, name)
        self._known: dict[str, Peer] = {}
        self._looking: asyncio.Task[None] | None = None
        self._renewal: Renewal | None = None

    def __serve_build_asgi_app__(self) -> Any:  # Serve's name
        """The HTTP API. Called by Serve in the replica, on its loop."""
        settings = self._options.settings
        self._looking = asyncio.ensure_future(self._look_for_workers())
        self._renewal = Renewal(asyncio.get_running_loop(), self._router.renew_leases)
        files = (settings.api_key_file, settings.operator_key_file)
        keys = ApiKeys(*files) if settings.has_keys else None
        app = create_app(
            self._router,
            self._narrator,
            self._router.shut_down,
            access=Access(keys, settings.host, settings.insecure, settings.cors_origin),
            console=settings.console,
            private_load=settings.private_load,
        )
        return _behind_proxy(app)

    async def __del__(self) -> None:
        """Leave the fleet."""
        if self._looking is not None:
            self._looking.cancel()
        if self._renewal is not None:
            self._renewal.close()
        self._router.close()

    async def _look_for_workers(self) -> None:
        while True:
            try:
                await asyncio.to_thread(known_workers, self._known)
                self._router.found(self._known)
            except Exception as error:  # noqa: BLE001  # Ray's own store of names may be away for a while.
                message = "cannot list the workers"
                self._narrator.emit(narration.Error.from_exception(error, code="INTERNAL", message=message))
            await asyncio.sleep(LOOK_FOR_WORKERS_SEC)


def application(options: FleetOptions | None = None) -> Any:
    """The application, with options from the environment unless some are given."""
    given = (options or FleetOptions.from_environment()).with_absolute_paths()
    drain_sec = given.settings.drain_sec
    workers = serve.deployment(
        name="worker",
        num_replicas=given.workers,
        max_ongoing_requests=REQUESTS,
        health_check_period_s=HEALTH_SEC,
        health_check_timeout_s=HEALTH_TIMEOUT_SEC + 1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=drain_sec + 2,
        ray_actor_options={"num_cpus": 1},
    )(WorkerReplica)
    routers = serve.deployment(
        name="router",
        num_replicas=given.routers,
        max_ongoing_requests=REQUESTS,
        health_check_period_s=HEALTH_SEC,
        health_check_timeout_s=HEALTH_TIMEOUT_SEC,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(RouterReplica))
    return routers.bind(given, workers.bind(given))


class Cluster:
    """Ray, and the fleet on it, as the process sees them that starts the fleet."""

    def __init__(self, options: FleetOptions, address: ClusterAddress | None) -> None:
        """Start Ray on this machine, or join the cluster at an address.

        Raises:
            FleetRefused: the cluster cannot be joined.
        """
        self._options = options
        self._joined = address is not None
        if address is not None:
            _join(address)
            return
        more = {
            "num_cpus": options.workers + CPUS_BESIDE,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ray.init("local", namespace=NAMESPACE, logging_level="warning", **more)
            except Exception:  # It has no class of its own for a node that took longer than 30 s to start.
                ray.shutdown()
                if attempt == ATTEMPTS:
                    raise
            else:
                break

    def deploy(self, stop: threading.Event) -> bool:
        """Start routers and workers. Returns when requests are served, though the model may still be loading, or when
        `stop` is set. Returns whether requests are served.

        Raises:
            FleetRefused: they cannot be started.
        """
        settings = self._options.settings
        http = {
            "host": settings.host,
            "port": settings.port,
            "keep_alive_timeout_s": int(settings.keep_alive_sec),
        }
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        app = RunTarget(application(self._options), APP_NAME, logging_config=quiet)
        serve.run_many([app], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        while not stop.wait(LOOK_FOR_DEPLOYMENT_SEC):
            found = serve.status().applications.get(APP_NAME)
            if found is not None and found.status == ApplicationStatus.RUNNING:
                return True
            if found is not None and found.status == ApplicationStatus.DEPLOY_FAILED:
                raise FleetRefused(f"required workers that start, but {found.message}")
        return False

    def wait(self, stop: threading.Event) -> str:
        """Wait for a signal, or for a client's `POST /shutdown` at any router. Returns who asked."""
        known: dict[str, Peer] = {}
        asked: list[Any] = []
        while not stop.wait(LOOK_FOR_WORKERS_SEC):
            with contextlib.suppress(RayError):  # Ray's own store of names may be away for a while.
                asked += [worker.shutdown_asked.remote() for worker in worker_actors(known)]
            if not asked:
                continue
            answered, asked = ray.wait(asked, num_returns=len(asked), timeout=0)
            for answer in answered:
                with contextlib.suppress(RayError):  # It has died.
                    why: str = ray.get(answer)
                    return why
        return ""

    def drain(self, within_sec: float, at_once: threading.Event) -> None:
        """Let jobs finish, until a second signal."""
        drains = [worker.drain.remote() for worker in worker_actors({})]
        until = time.monotonic() + within_sec
        while drains and time.monotonic() < until and not at_once.is_set():
            drains = ray.wait(drains, num_returns=len(drains), timeout=0.1)[1]

    def close(self, *, at_once: bool) -> None:
        """End the fleet, and Ray if it was started for it. `at_once`: streams break off."""
        if at_once:
            for worker in worker_actors({}):
                ray.kill(worker)
        if self._joined or not at_once:
            with contextlib.suppress(RayServeException):  # Serve was not started.
                serve.delete(APP_NAME)
        if self._joined and not serve.status().applications:
            serve.shutdown()  # It was started for the fleet; without this its proxy would keep the port.
        ray.shutdown()


def _behind_proxy(app: ASGIApp) -> ASGIApp:
    """The app without its `X-Request-Id`: Serve's proxy adds one to each response, and gives it to the request if the
    client sent none."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [one for one in message.get("headers", ()) if one[0].lower() != b"x-request-id"]
                message = {**message, "headers": others}
            await send(message)

        await app(scope, receive, send_once if scope["type"] == "http" else send)

    return served


def _join(address: ClusterAddress) -> None:
    """Connect to a Ray cluster on which Serve does not run yet.

    Raises:
        FleetRefused: it cannot be joined.
    """
    try:
        ray.init(address=address.text, namespace=NAMESPACE, logging_level="warning")
    except Exception as error:  # Ray has several classes for it, all of them builtin.
        raise address.refusal(f"a Ray cluster that can be joined, but {error}") from error
    if _serve_runs():
        ray.shutdown()
        used = "Serve runs there already, with an address of its own (`serve shutdown` ends it)"
        raise address.refusal(f"a Ray cluster without Serve, but {used}")


def _serve_runs() -> bool:
    """Whether there is a controller of Serve, which is where its address and its applications are."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True
