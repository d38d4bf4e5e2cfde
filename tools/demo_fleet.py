"""`make demo-fleet`: three workers, forty streams, cancels from anywhere, one worker killed, and nothing lost."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

import psutil

from worker_orcd.child_process import free_port
from worker_orcd.client import Client, JobCancelled, WorkerError

STREAMS = 40
WORKERS = 3
TOKENS = 120
START_SEC = 300.0


async def main() -> int:
    """Run it. Returns the exit code."""
    port = free_port()
    command = [sys.executable, "-m", "worker_orcd", "fleet", "--workers", str(WORKERS), "--routers", "2"]
    command += ["--port", str(port), "--threads", "1", "--log-format", "json"]
    with tempfile.NamedTemporaryFile(prefix="worker-orcd-fleet-", suffix=".log", delete=False) as log:
        fleet = subprocess.Popen(  # noqa: ASYNC220, S603  # Our own command; nothing else happens yet.
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    print(f"Starting {WORKERS} workers and 2 routers on Ray; their log is {log.name}")
    try:
        async with Client(f"http://127.0.0.1:{port}") as client:
            return await shown(client, fleet)
    finally:
        fleet.send_signal(signal.SIGTERM)
        fleet.wait(60)


async def shown(client: Client, fleet: "subprocess.Popen[bytes]") -> int:
    """Let the streams run, cancel every fourth, and kill a worker."""
    await ready(client)
    print(f"Ready. {STREAMS} streams begin.")
    running = [asyncio.ensure_future(stream(client, f"demo-{number}")) for number in range(STREAMS)]
    await asyncio.sleep(3.0)
    workers = [
        child
        for child in psutil.Process(fleet.pid).children(recursive=True)
        if "".join(child.cmdline()[:1]).startswith("ray::WorkerActor")
    ]
    victim = random.choice(workers)  # noqa: S311  # Any of them.
    print(f"Killing the worker with pid {victim.pid}.")
    os.kill(victim.pid, signal.SIGKILL)
    cancelled = set(range(0, STREAMS, 4))
    for number in cancelled:
        await client.cancel(f"demo-{number}", wait_sec=0)
    print(f"Cancelled {len(cancelled)} jobs.")
    ends = await asyncio.gather(*running)
    right = sum(end == ("cancelled" if number in cancelled else "whole") for number, end in enumerate(ends))
    requeued = sum(bool(record["requeues"]) for record in await client.jobs())
    print(
        f"{ends.count('whole')} streams reached their end without a gap, {ends.count('cancelled')} were cancelled; "
        f"{requeued} jobs went on at another worker."
    )
    print("Nothing was lost." if right == STREAMS else f"{STREAMS - right} jobs did not end as they should.")
    return 0 if right == STREAMS else 1


async def ready(client: Client) -> None:
    """Wait until all workers have loaded the model."""
    async with asyncio.timeout(START_SEC):
        while True:
            with suppress(WorkerError):
                health = await client.health()
                if health["status"] == "healthy" and health["kv_cells_total"] == WORKERS * 16384:
                    return
            await asyncio.sleep(0.5)


async def stream(client: Client, job_id: str) -> str:
    """One job: how it ended."""
    job = client.execute(
        "Tell a story about the sea.", job_id=job_id, max_tokens=TOKENS, ignore_eos=True, resume=True
    )
    try:
        async with job:
            numbers = [token.index async for token in job]
    except JobCancelled:
        return "cancelled"
    except WorkerError as error:
        return f"failed: {error}"
    return "whole" if numbers[:TOKENS] == list(range(TOKENS)) else "torn"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
