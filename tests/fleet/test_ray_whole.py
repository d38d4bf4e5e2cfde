"""A fleet on Ray, used as one worker by the command line and by OpenAI's API, and its end, with real processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import psutil
import pytest

from tests.fleet.ray_fleet import WORKER, Client, RayFleet, clients_of, running_ray_fleet
from worker_orcd.testing.harness import wait_until

pytestmark = [pytest.mark.needs("ray"), pytest.mark.nightly, pytest.mark.timeout(900)]

STORY = '{"token_ms": 15}'
LOOKS = 8
"""Requests without a connection of their own reach each of two routers, nearly for sure."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Two workers and two routers."""
    with running_ray_fleet(tmp_path_factory.mktemp("fleet"), 2, 2) as running:
        yield running


def typed(fleet: RayFleet, *words: str) -> str:
    """What a command shows."""
    command = [sys.executable, "-m", "worker_orcd", *words, "--url", fleet.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


async def data_of(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of a stream's events."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_the_command_line_shows_and_cancels_the_jobs_of_all_workers(fleet: RayFleet) -> None:
    """`ps`, `cancel` of a job and of a group, and `logs`."""

    async def use() -> list[Client]:
        async with clients_of(fleet) as http:
            body = {"prompt": STORY, "max_tokens": 4000, "group": "typed"}
            clients = [Client(http, f"typed-{n}", body) for n in range(6)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients:
                await client.seen(2)
            shown = await asyncio.to_thread(typed, fleet, "ps", "--json")
            jobs = {job["job_id"]: job["state"] for job in json.loads(shown)["jobs"]}
            assert {jobs[client.job_id] for client in clients} == {"running"}
            assert "freed after" in await asyncio.to_thread(typed, fleet, "cancel", "typed-0")
            assert (await asyncio.to_thread(typed, fleet, "cancel", "--group", "typed")).count("freed") == 5
            return list(await asyncio.gather(*reading))

    assert {client.last["code"] for client in asyncio.run(use())} == {"CANCELLED"}
    command = [sys.executable, "-m", "worker_orcd", "logs", "--json", "--url", fleet.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        routed: dict[str, str] = {}
        for line in logs.stdout:
            event = json.loads(line)
            if event["action"] == "route" and event["job_id"].startswith("typed"):
                routed[event["job_id"]] = event["worker_id"]
            if len(routed) == 6:
                break
        logs.send_signal(signal.SIGINT)
    assert len(set(routed.values())) == 2


def test_a_background_response_is_one_at_all_routers(fleet: RayFleet) -> None:
    """It is polled, streamed, resumed, cancelled, continued and deleted through any of them."""

    async def use(http: httpx2.AsyncClient) -> None:
        asked = {"model": "scripted", "input": STORY, "background": True, "max_output_tokens": 4000}
        answer = await http.post("/v1/responses", json=asked, headers={"X-Request-Id": "mine"})
        ids = [(name, value) for name, value in answer.headers.multi_items() if name.endswith("-id")]
        assert [value for name, value in ids if name == "x-request-id"] == ["mine"]
        assert ("x-correlation-id", "mine") in ids
        made = answer.json()
        path = f"/v1/responses/{made['id']}"
        looks = [(await http.get(path)).json()["status"] for _ in range(LOOKS)]
        assert set(looks) <= {"queued", "in_progress"}
        numbers: list[int] = []
        for wanted in (20, 40, 60):
            query = {"stream": "true"} | ({"starting_after": str(numbers[-1])} if numbers else {})
            async with http.stream("GET", path, params=query) as stream:
                async for event in data_of(stream):
                    numbers.append(event["sequence_number"])
                    if len(numbers) == wanted:
                        break
        assert numbers == list(range(60))
        assert (await http.post(f"{path}/cancel")).json()["status"] == "cancelled"
        assert {(await http.get(path)).json()["status"] for _ in range(LOOKS)} == {"cancelled"}
        more = asked | {"background": False, "max_output_tokens": 3, "previous_response_id": made["id"]}
        assert (await http.post("/v1/responses", json=more)).json()["status"] == "incomplete"
        assert (await http.delete(path)).json()["deleted"] is True
        assert {(await http.get(path)).status_code for _ in range(LOOKS)} == {404}

    async def twice() -> None:
        async with clients_of(fleet) as http:
            for _ in range(2):
                await use(http)

    asyncio.run(twice())


def test_a_request_of_several_jobs_is_cancelled_as_one(fleet: RayFleet) -> None:
    """Choices and prompts: by the request's id, through any router."""

    async def use() -> None:
        async with clients_of(fleet) as http:
            chat: dict[str, Any] = {"messages": [{"role": "user", "content": STORY}], "n": 3}
            prompts: dict[str, Any] = {"prompt": [STORY] * 4}
            requests = [("/v1/chat/completions", chat), ("/v1/completions", prompts)] * 2
            for number, (path, body) in enumerate(requests):
                name = f"several-{number}"
                asked = {"model": "scripted", "max_tokens": 4000} | body
                asking = asyncio.ensure_future(http.post(path, json=asked, headers={"X-Job-Id": name}))
                live: list[str] = []
                while len(live) < (3 if "n" in body else 4):
                    shown = (await http.get("/jobs")).json()["jobs"]
                    live = [job["job_id"] for job in shown if job["state"] == "running"]
                stopped = await http.post("/cancel", json={"job_id": name}, headers={"Prefer": "wait=5"})
                assert stopped.status_code in (200, 202)
                answer = await asking
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")
                jobs: list[dict[str, Any]] = []
                while live:  # The other parts end as soon as the engine has confirmed their stops.
                    jobs = (await http.get("/jobs")).json()["jobs"]
                    live = [job["job_id"] for job in jobs if job["ended_ms"] is None]
                ended = [job for job in jobs if job["job_id"].partition(".")[0] == name]
                assert {job["state"] for job in ended} == {"cancelled"}

    asyncio.run(use())


def test_a_worker_whose_engine_cannot_be_started_gives_its_jobs_away(fleet: RayFleet) -> None:
    """Its engines are killed until it gives up. No stream breaks, and Serve starts another worker."""

    def kill_engines() -> None:
        worker = psutil.Process(fleet.pids(WORKER)[0])
        with contextlib.suppress(psutil.NoSuchProcess):
            while True:
                for child in worker.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "worker_orcd.testing.scripted_engine" in child.cmdline():
                            child.kill()
                time.sleep(0.02)

    async def use() -> list[Client]:
        async with clients_of(fleet) as http:
            body = {"prompt": STORY, "max_tokens": 150, "seed": 7}
            clients = [Client(http, f"kept-{n}", body) for n in range(6)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients:
                await client.seen(3)
            await asyncio.wait_for(asyncio.to_thread(kill_engines), 120)
            return list(await asyncio.gather(*reading))

    clients = asyncio.run(use())
    assert {client.last.get("stop_reason") for client in clients} == {"length"}
    assert len({client.text for client in clients}) == 1
    assert not any(client.breaks for client in clients)
    wait_until(lambda: fleet.whole(2, 2 * 16384), within_sec=120.0, what="a whole fleet")


def test_a_client_ends_the_fleet(fleet: RayFleet) -> None:
    """`POST /shutdown` at any router: the job that runs too long ends as CANCELLED, and the fleet with 0."""

    async def use() -> Client:
        async with clients_of(fleet) as http:
            client = Client(http, "last", {"prompt": STORY, "max_tokens": 8000})
            reading = asyncio.ensure_future(client.run())
            await client.seen(2)
            assert (await http.post("/shutdown")).status_code == 202
            await asyncio.sleep(0.5)
            assert {(await http.get("/readyz")).status_code for _ in range(LOOKS)} == {503}
            late = await http.post("/execute", json={"job_id": "late", "prompt": "x"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "DRAINING")
            return await reading

    client = asyncio.run(use())
    assert (client.last["code"], client.last["reason"]) == ("CANCELLED", "shutdown")
    assert fleet.process.wait(30) == 0
    assert '"reason":"POST /shutdown"' in fleet.log.read_text()


def test_a_second_signal_ends_the_fleet_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first one drains."""
    with running_ray_fleet(tmp_path_factory.mktemp("fleet"), 1, 1, "--drain-sec", "600") as fleet:

        async def use() -> None:
            async with clients_of(fleet) as http:
                client = Client(http, "runs", {"prompt": STORY, "max_tokens": 8000})
                reading = asyncio.ensure_future(client.run())
                await client.seen(2)
                os.kill(fleet.process.pid, signal.SIGINT)
                await asyncio.sleep(2.0)
                number = len(client.events)
                await client.seen(number + 3)  # It still runs.
                os.kill(fleet.process.pid, signal.SIGTERM)
                await asyncio.to_thread(fleet.process.wait, 30)
                reading.cancel()

        asyncio.run(use())
        assert fleet.process.returncode == 0
