"""Fleets on a Ray cluster that runs already: by `--ray-address`, and by Serve's own command line."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.fleet.ray_fleet import (
    END_SEC,
    START_SEC,
    Client,
    Cluster,
    RayFleet,
    cancel,
    clients_of,
    ready,
    running_cluster,
    running_ray_fleet,
    started,
)
from tests.fleet.test_joining import Joining
from tests.tiny import TinyModels
from worker_orcd.testing.harness import free_port, wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.nightly, pytest.mark.timeout(900)]

STORY = {"prompt": '{"token_ms": 15}', "max_tokens": 4000, "on_disconnect": "continue"}
"""It goes on where a busy machine makes its worker take its router for dead."""
CELLS = 4096
OURS = ("ray::WorkerActor", "ray::ServeReplica:worker-orcd")

DEPLOY_ANOTHER = """
import ray
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Another:
    async def __call__(self, request):
        return "another"

ray.init(namespace="another")
serve.run(Another.bind(), name="another", route_prefix="/another")
"""
END_SERVE = "import ray, ray.serve; ray.init(); ray.serve.shutdown()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ray, without Serve. It asks for a token."""
    with running_cluster(tmp_path_factory.mktemp("ray")) as running:
        yield running


@pytest.fixture(scope="module")
def open_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ray without tokens, and with one CPU."""
    with running_cluster(tmp_path_factory.mktemp("ray"), token=False, cpus=1) as running:
        yield running


async def one_ended_and_one_cancelled(fleet: RayFleet, body: dict[str, object]) -> tuple[Client, Client]:
    """A job that reaches its end, and one that is cancelled while it generates."""
    async with clients_of(fleet) as http:
        ended = Client(http, "ended", body | {"max_tokens": 5})
        await ended.run()
        client = Client(http, "cancelled", body)
        reading = asyncio.ensure_future(client.run())
        await client.seen(3)
        await cancel(http, client.job_id)
        return ended, await reading


def assert_it_serves(fleet: RayFleet, body: dict[str, object] = STORY) -> None:
    """It executes a job, and stops one."""
    ended, cancelled = asyncio.run(one_ended_and_one_cancelled(fleet, body))
    assert (ended.last["stop_reason"], ended.last["tokens_out"]) == ("length", 5)
    assert (cancelled.last["code"], cancelled.last["reason"]) == ("CANCELLED", "client")
    command = [sys.executable, "-m", "worker_orcd", "ps", "--json", "--url", fleet.url]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    states = {job["job_id"]: job["state"] for job in json.loads(shown)["jobs"]}
    assert states == {"ended": "completed", "cancelled": "cancelled"}
    wait_until(lambda: fleet.health()["kv_cells_used"] == 0, what="free cells")


def assert_it_left(fleet: RayFleet) -> None:
    """Its port is free, and none of its processes are there; the cluster is."""
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{fleet.url}/health", trust_env=False)
    assert_no_process(fleet)


def assert_no_process(fleet: RayFleet) -> None:
    """None of its processes are there; those of the cluster are."""

    def found() -> list[int]:
        return [*fleet.engines(), *(pid for title in OURS for pid in fleet.pids(title))]

    wait_until(lambda: not found(), within_sec=15.0, what="the end of its processes")
    assert fleet.cluster is not None
    assert fleet.cluster.nodes() == 1


def interrupted(fleet: RayFleet) -> dict[str, object]:
    """End it by Ctrl-C while a job runs. Returns the terminal event of that job."""

    async def interrupt() -> Client:
        async with clients_of(fleet) as http:
            client = Client(http, "last", dict(STORY))
            reading = asyncio.ensure_future(client.run())
            await client.seen(3)
            fleet.process.send_signal(signal.SIGINT)
            return await reading

    last = asyncio.run(interrupt()).last
    assert fleet.process.wait(END_SEC) == 0, fleet.log.read_text()
    end = json.loads(fleet.log.read_text().splitlines()[-1])
    assert (end["action"], end["reason"]) == ("shutdown", "SIGINT")
    return last


def test_a_fleet_joins_a_cluster_and_leaves_it_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    """It serves, a second one beside it is refused, and Ctrl-C drains it. Then the next one can be started."""
    for _ in range(2):
        with running_ray_fleet(tmp_path, 2, 1, "--drain-sec", "1", cluster=cluster) as fleet:
            assert_it_serves(fleet)
            second = Joining(cluster.address, **cluster.token).refusal()
            assert "required a Ray cluster without Serve" in second
            assert fleet.health()["status"] == "healthy"
            last = interrupted(fleet)
            assert (last["code"], last["reason"]) == ("CANCELLED", "shutdown")
            assert_it_left(fleet)


def test_a_fleet_ends_no_application_of_others(cluster: Cluster, tmp_path: Path) -> None:
    """One that was deployed to its Serve meanwhile answers on, at the same port."""
    with running_ray_fleet(tmp_path, 2, 1, "--drain-sec", "1", cluster=cluster) as fleet:
        cluster.ask("python", "-c", DEPLOY_ANOTHER)
        assert httpx2.get(f"{fleet.url}/another", trust_env=False).text == "another"
        interrupted(fleet)
        assert httpx2.get(f"{fleet.url}/another", trust_env=False).text == "another"
        assert_no_process(fleet)
    cluster.ask("python", "-c", END_SERVE)


def test_a_cluster_whose_token_is_missing_or_wrong_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """And one for which the variables say that it has none."""
    home = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""}
    said = Joining(cluster.address, **home).refusal()
    assert f"but there is none in {tmp_path}/.ray/auth_token" in said
    said = Joining(cluster.address, RAY_AUTH_TOKEN="0" * 64).refusal()
    assert "but it does not accept that of RAY_AUTH_TOKEN" in said
    said = Joining(cluster.address, RAY_AUTH_MODE="disabled", **cluster.token).refusal()
    assert "as RAY_AUTH_MODE says" in said


@contextlib.contextmanager
def fleet_by_auto(cluster: Cluster, home: Path, workers: int) -> Iterator[RayFleet]:
    """A fleet that joins the latest cluster of this folder, not ready yet. Its user has the token of another one."""
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    port, log = free_port(), home / "log"
    command = [sys.executable, "-m", "worker_orcd.testing.fleet", "--port", str(port), "--log-format", "json"]
    command += ["--workers", str(workers), "--routers", "1", "--context-length", str(CELLS)]
    env = {"HOME": str(home), "RAY_TMPDIR": cluster.environment["RAY_TMPDIR"], "RAY_ADDRESS": ""}
    with started([*command, "--ray-address", "auto"], log, env) as process:
        yield RayFleet(f"http://127.0.0.1:{port}", process, log, cluster)


def test_the_latest_cluster_is_joined_by_auto(open_cluster: Cluster, tmp_path: Path) -> None:
    """One without tokens, by a user who has one."""
    with fleet_by_auto(open_cluster, tmp_path, workers=1) as fleet:
        ready(fleet, 1, CELLS)
        assert_it_serves(fleet)


def test_ctrl_c_ends_a_fleet_that_waits_for_cpus(open_cluster: Cluster, tmp_path: Path) -> None:
    """The cluster has fewer than it wants."""
    with fleet_by_auto(open_cluster, tmp_path, workers=2) as fleet:
        loading = '"action":"model_load_start"'  # By the first worker.
        wait_until(lambda: loading in fleet.log.read_text(), within_sec=START_SEC, what="the first worker")
        fleet.process.send_signal(signal.SIGINT)
        assert fleet.process.wait(END_SEC) == 0
        assert '"action":"ready"' not in fleet.log.read_text()
        assert_it_left(fleet)


def test_serve_run_takes_its_options_from_variables(
    cluster: Cluster, tmp_path: Path, tiny_models: TinyModels
) -> None:
    """The model, in the folder of the command, its name, and the size of a worker. Ctrl-C removes the application."""
    port, log, model = free_port(), tmp_path / "log", tiny_models.path("llama")
    cluster.ask("serve", "start", "--http-port", str(port))
    variables = cluster.environment | {
        "RAY_ADDRESS": cluster.address,
        "WORKER_ORCD_MODEL": model.name,
        "WORKER_ORCD_MODEL_ALIAS": "tiny",
        "WORKER_ORCD_CONTEXT_LENGTH": str(CELLS),
        "WORKER_ORCD_FLEET_WORKERS": "2",
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", "worker_orcd.fleet:app"]
    with started(command, log, variables, model.parent) as process:
        fleet = RayFleet(f"http://127.0.0.1:{port}", process, log, cluster)
        ready(fleet, 2, CELLS)
        models = httpx2.get(f"{fleet.url}/v1/models", trust_env=False).json()
        assert models["data"][0]["id"] == "tiny"
        assert_it_serves(
            fleet,
            {
                "prompt": "Once",
                "template": "none",
                "ignore_eos": True,
                "max_tokens": 3000,
                "on_disconnect": "continue",
            },
        )
        process.send_signal(signal.SIGINT)
        process.wait(END_SEC)
        assert_it_left(fleet)
