"""A fleet of two workers on Ray with the bundled model: conversations stay where they are warm, cancels free what was
computed, and with `--exact` no byte differs after a worker's death."""

import asyncio
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.fleet.ray_fleet import REAL, WORKER, Client, RayFleet, cancel, clients_of, running_ray_fleet
from worker_orcd.testing.harness import wait_until
from worker_orcd.testing.trials import STORY, long_prompt

pytestmark = [
    pytest.mark.needs("ray"),
    pytest.mark.real,
    pytest.mark.nightly,
    pytest.mark.timeout(900),
]

CELLS = 8192
OPTIONS = ("--parallel", "4", "--threads", "1")
TURNS = 6
ABOUT = {
    "sea": "You tell sailors about the sea, its tides, its winds and its weather, and about nothing else at all. ",
    "bread": "You tell bakers about bread, its flour, its yeast and its crust, and about nothing else at all. ",
}
"""What the system message of each conversation repeats: it has more than the 256 characters of a block."""
OVERHEAD = 16
"""Tokens of the chat template around a message and before the answer, at most."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Two workers and two routers."""
    folder = tmp_path_factory.mktemp("real-fleet")
    with running_ray_fleet(folder, 2, 2, *OPTIONS, program=REAL, cells=CELLS) as running:
        yield running


def prompt_tokens(text: str, source: str) -> float:
    """How many prompt tokens all workers have computed, or taken from their caches, by `/metrics`."""
    found = re.findall(rf'^worker_prompt_tokens_total{{.*source="{source}".*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def routes(fleet: RayFleet, prefix: str, number: int) -> list[dict[str, Any]]:
    """So many `route` events of jobs whose ids begin like this."""
    command = [sys.executable, "-m", "worker_orcd", "logs", "--json", "--url", fleet.url]
    found: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        for line in logs.stdout:
            event = json.loads(line)
            if event["action"] == "route" and event["job_id"].startswith(prefix):
                found.append(event)
            if len(found) == number:
                break
        logs.terminate()
    return found


class Conversation:
    """One client's conversation, and what each of its turns computed."""

    def __init__(self, http: httpx2.AsyncClient, name: str) -> None:
        self.name = name
        self.computed: list[int] = []
        self.cached: list[int] = []
        self.new: list[int] = []
        """Of each turn, the tokens that its prompt has more than the last turn's prompt and answer."""
        self._http = http
        self._messages = [{"role": "system", "content": ABOUT[name] * 5}]
        self._known = 0

    async def turn(self) -> None:
        """Ask, and get an answer."""
        number = len(self.computed)
        self._messages.append(
            {"role": "user", "content": f"Tell me fact number {number} about the {self.name}."}
        )
        body = {"messages": self._messages, "max_tokens": 30, "temperature": 0}
        answer = await self._http.post(
            "/v1/chat/completions", json=body, headers={"X-Job-Id": f"turn-{self.name}-{number}"}
        )
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        self._messages.append(shown["choices"][0]["message"])
        usage = shown["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.computed.append(usage["prompt_tokens"] - cached)
        self.cached.append(cached)
        self.new.append(usage["prompt_tokens"] - self._known)
        self._known = usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_turns_of_a_conversation_compute_only_what_is_new(fleet: RayFleet) -> None:
    """Whichever router they reach: each conversation stays at one worker."""

    async def talk() -> tuple[list[Conversation], str, str]:
        async with clients_of(fleet) as http:
            conversations = [Conversation(http, name) for name in ABOUT]
            before = (await http.get("/metrics")).text
            for _ in range(TURNS):
                await asyncio.gather(*(each.turn() for each in conversations))
            return conversations, before, (await http.get("/metrics")).text

    conversations, before, after = asyncio.run(talk())
    for each in conversations:
        print(f"{each.name}: computed {each.computed}, cached {each.cached}, new {each.new}")
        assert all(computed <= new + OVERHEAD for computed, new in zip(each.computed, each.new, strict=True))
    for source in ("computed", "cached"):
        counted = prompt_tokens(after, source) - prompt_tokens(before, source)
        assert counted == sum(sum(getattr(each, source)) for each in conversations)
    at: dict[str, set[str]] = defaultdict(set)
    routed = routes(fleet, "turn-", TURNS * len(ABOUT))
    for event in routed:
        at[event["job_id"].split("-")[1]].add(event["worker_id"])
    assert {len(workers) for workers in at.values()} == {1}
    assert len({event["router"] for event in routed}) == 2


def test_what_was_computed_is_freed_after_cancels(fleet: RayFleet) -> None:
    """In prefill and in decode, at both workers: no live job has a cell, and no token comes any more."""

    async def stop() -> list[dict[str, Any]]:
        async with clients_of(fleet) as http:
            bodies = [{"prompt": STORY, "max_tokens": 2000, "ignore_eos": True}] * 4
            bodies += [
                {"prompt": long_prompt(n, 1500), "template": "none", "max_tokens": 50} for n in range(4)
            ]
            clients = [Client(http, f"freed-{n}", body) for n, body in enumerate(bodies)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients[:4]:
                await client.seen(3)
            for client in clients:
                await cancel(http, client.job_id)
            await asyncio.gather(*reading)
            assert {client.last["code"] for client in clients} == {"CANCELLED"}
            return [(await http.get(f"/jobs/{client.job_id}")).json() for client in clients]

    records = asyncio.run(stop())
    receipts = [record["receipt"] for record in records]
    assert {receipt["reason"] for receipt in receipts} == {"client"}
    assert all(receipt["freed_ms"] is not None and receipt["kv_cells_after"] == 0 for receipt in receipts)
    assert sum(receipt["kv_cells_before"] > 0 for receipt in receipts) >= 4
    wait_until(lambda: fleet.health()["kv_cells_used"] == 0, within_sec=5.0, what="free cells")
    assert fleet.health()["jobs_running"] == 0


@pytest.fixture(scope="module")
def exact_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    """Two workers with `--exact`, and a router."""
    folder = tmp_path_factory.mktemp("exact-fleet")
    with running_ray_fleet(folder, 2, 1, *OPTIONS, "--exact", program=REAL, cells=CELLS) as running:
        yield running


def test_with_exact_no_byte_differs_after_a_worker_s_death(exact_fleet: RayFleet) -> None:
    """A stream alone, and the same eight times over two workers, one of which is killed in the middle."""
    story = {"prompt": STORY, "max_tokens": 150, "ignore_eos": True, "temperature": 1.0, "seed": 7}

    async def streams() -> tuple[Client, list[Client], int]:
        async with clients_of(exact_fleet) as http:
            alone = await Client(http, "alone", story).run()
            clients = [Client(http, f"beside-{n}", story) for n in range(8)]
            reading = [asyncio.ensure_future(client.run()) for client in clients]
            for client in clients:
                await client.seen(20)
            exact_fleet.kill(WORKER)
            await asyncio.gather(*reading)
            records = [(await http.get(f"/jobs/{client.job_id}")).json() for client in clients]
            return alone, clients, sum(bool(record["requeues"]) for record in records)

    alone, clients, requeued = asyncio.run(streams())
    assert requeued > 0
    assert not any(client.breaks for client in clients)
    assert all(client.last["tokens_out"] == 150 for client in clients)
    assert {client.text for client in clients} == {alone.text}
