"""`/mcp`, used by the client of the `mcp` package (docs/mcp.md)."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.helpers import SLOW, fresh_id, script
from tools.docs.examples import idle_worker
from worker_orcd.api.mcp_server import McpEndpoint
from worker_orcd.jobs.request import ExecuteRequest
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker
from worker_orcd.worker.single import SingleWorker

ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """A worker with two keys; its client has one of them."""
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{ANNA}\n{BERTA}\n")
    with running_worker(api_key_file=str(keys), mcp=True) as worker:
        worker.client.headers["Authorization"] = f"Bearer {ANNA}"
        yield worker


def asked(
    worker: RunningWorker, *calls: tuple[str, dict[str, Any]], key: str = ANNA, mode: str = "auto"
) -> list[Any]:
    """The results of tool calls, one after the other; for the call `list`, the tools."""

    async def ask() -> list[Any]:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
            transport = streamable_http_client(f"{worker.url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                return [
                    (await client.list_tools()).tools
                    if name == "list"
                    else await client.call_tool(name, arguments)
                    for name, arguments in calls
                ]

    return asyncio.run(ask())


def started(worker: RunningWorker, **fields: Any) -> str:
    """A live job of Anna's that has generated something."""
    job_id = fresh_id("supervised")
    body = {"job_id": job_id, "prompt": SLOW, "on_disconnect": "continue", **fields}
    with worker.client.stream("POST", "/execute", json=body) as answer:
        lines = answer.iter_lines()
        while "event: token" not in next(lines):
            pass
    return job_id


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_finds_a_job_cancels_it_and_reads_its_receipt(supervised: RunningWorker, mode: str) -> None:
    """By the specification of July 2026, and by the one before it."""
    job_id = started(supervised)
    tools, jobs, cancelled, receipt = asked(
        supervised,
        ("list", {}),
        ("jobs", {"limit": 0}),
        ("cancel", {"job_id": job_id}),
        ("receipt", {"job_id": job_id}),
        mode=mode,
    )
    assert [tool.name for tool in tools] == ["cancel", "jobs", "receipt"]
    assert all(tool.description and tool.input_schema["type"] == "object" for tool in tools)
    assert [job["job_id"] for job in jobs.structured_content["jobs"]] == [job_id]
    said = cancelled.structured_content
    assert (said["status"], said["receipt"]["reason"], said["receipt"]["phase"]) == (
        "cancelled",
        "client",
        "decode",
    )
    record = supervised.client.get(f"/jobs/{job_id}").json()
    assert receipt.structured_content == record
    assert record["receipt"] == said["receipt"]


def test_a_group_is_cancelled_and_an_unknown_job_is_remembered(supervised: RunningWorker) -> None:
    """As by `POST /cancel`."""
    jobs = [started(supervised, group="agents") for _ in range(2)]
    early = fresh_id("early")
    group, unknown = asked(supervised, ("cancel", {"group": "agents"}), ("cancel", {"job_id": early}))
    assert {job["job_id"] for job in group.structured_content["jobs"]} == set(jobs)
    assert unknown.structured_content == {"status": "cancelling", "job_id": early}
    answer = supervised.client.post("/execute", json={"job_id": early, "prompt": script()})
    assert "CANCELLED" in answer.text


def test_a_receipt_can_wait_for_the_end(supervised: RunningWorker) -> None:
    """Of a job that nobody stops."""
    job_id = started(supervised, max_tokens=20)
    (result,) = asked(supervised, ("receipt", {"job_id": job_id, "wait_sec": 60}))
    assert result.structured_content["state"] == "completed"


def test_jobs_of_another_key_are_unknown(supervised: RunningWorker) -> None:
    """They cannot be listed, read or cancelled."""
    job_id = started(supervised)
    jobs, receipt, cancel = asked(
        supervised, ("jobs", {}), ("receipt", {"job_id": job_id}), ("cancel", {"job_id": job_id}), key=BERTA
    )
    assert jobs.structured_content == {"jobs": []}
    assert (receipt.is_error, receipt.structured_content["code"]) == (True, "JOB_NOT_FOUND")
    assert cancel.structured_content["status"] == "cancelling"
    assert supervised.client.get(f"/jobs/{job_id}").json()["state"] == "running"
    supervised.client.post("/cancel", json={"job_id": job_id})


@pytest.mark.parametrize(
    ("name", "arguments", "param"),
    [
        ("cancel", {}, "job_id"),
        ("cancel", {"job_id": "a", "group": "b"}, "group"),
        ("cancel", {"job_id": "ä"}, "job_id"),
        ("cancel", {"job_id": "a", "wait_sec": 301}, "wait_sec"),
        ("jobs", {"limit": "x"}, "limit"),
        ("receipt", {"job": "a"}, "job"),
        ("explode", {}, "name"),
    ],
    ids=str,
)
def test_a_malformed_call_is_an_error_that_says_why(
    supervised: RunningWorker, name: str, arguments: dict[str, Any], param: str
) -> None:
    """A model can read and correct it."""
    (result,) = asked(supervised, (name, arguments))
    assert result.is_error
    assert (result.structured_content["code"], result.structured_content["param"]) == (
        "INVALID_REQUEST",
        param,
    )


def test_mcp_needs_a_key_and_the_option(supervised: RunningWorker, worker: RunningWorker) -> None:
    """Like everything else."""
    with httpx2.Client(base_url=supervised.url, trust_env=False) as stranger:
        assert stranger.post("/mcp", json={}).status_code == 401
    assert worker.client.post("/mcp", json={}).status_code == 404


def test_without_the_extra_the_option_is_refused_in_one_line(tmp_path: Path) -> None:
    """The line says what to install; nothing is loaded."""
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp" / "__init__.py").write_text("raise ImportError('no MCP here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "worker_orcd.cli.main", "--port", str(free_port()), "--mcp"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    wanted = "--mcp requires the extra `mcp` (pip install 'worker-orcd[mcp]'), but there is no MCP here"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"worker-orcd: INVALID_REQUEST: {wanted}\n")


def test_closing_the_stream_ends_a_call_that_waits() -> None:
    """As the specification demands (MCP 2026-07-28, cancellation). The job goes on: only the waiting ends."""
    version, prefix = "2026-07-28", "io.modelcontextprotocol"
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "receipt",
            "arguments": {"job_id": "job-1", "wait_sec": 300},
            "_meta": {
                f"{prefix}/protocolVersion": version,
                f"{prefix}/clientInfo": {"name": "test", "version": "1"},
                f"{prefix}/clientCapabilities": {},
            },
        },
    }
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": version,
        "mcp-method": "tools/call",
        "mcp-name": "receipt",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def close_while_it_waits() -> list[Any]:
        worker = idle_worker()
        (stream,) = worker.execute([ExecuteRequest(job_id="job-1", prompt="x")], "correlation-1")
        bodies = [{"type": "http.request", "body": json.dumps(call).encode(), "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if bodies:
                return bodies.pop()
            while not stream.waiting:  # noqa: ASYNC110  # It has no event to wait for.
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(30):
            await McpEndpoint(SingleWorker(worker))(scope, receive, send)
        assert not stream.waiting
        assert stream.job.live
        return sent

    assert asyncio.run(close_while_it_waits()) == []
