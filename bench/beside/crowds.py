"""Workloads about many open streams: what each costs in memory, and how long a cancel among them takes."""

import random
import time

import psutil

from bench.beside.client import Stream, ask
from bench.beside.report import quantile
from bench.beside.servers import Bench
from worker_orcd.child_process import wait_until
from worker_orcd.testing.harness import running_worker

CANCELS = 200
"""As many of the streams are cancelled, one after the other."""
DECODING = 64
"""Streams that get tokens, the most that an engine decodes together; all others are open and wait in the queue."""
_TOKEN_MS = 1000 // DECODING


def crowd(bench: Bench, number: int, streams: int) -> dict[str, float]:
    """So many open streams on one front, of the scripted engine with about a token a second for each that decodes.

    A cancel's time is that from its request to its job's terminal event, at the client. Memory is that of the front.
    """
    prompt = f'{{"token_ms": {_TOKEN_MS}}}'
    body = {
        "prompt": prompt,
        "template": "none",
        "ignore_eos": True,
        "max_tokens": 900,
        "timeout_ms": 600_000,
    }
    env = {"WORKER_ORCD_TEST_CONNECTIONS": str(streams + 1000)}
    with (
        bench.nobody(),
        running_worker(max_queue=streams, parallel=DECODING, context_length=65536, env=env) as worker,
    ):
        front = psutil.Process(worker.process.pid)
        alone = front.memory_info().rss
        opened = [Stream(worker.port, "/execute", {"job_id": f"c{n}", **body}) for n in range(streams)]

        def live() -> int:
            health = worker.health()
            return int(health["jobs_queued"]) + int(health["jobs_running"])

        wait_until(lambda: live() >= streams, within_sec=300, what=f"{streams} streams to be open")
        memory = (front.memory_info().rss - alone) / streams / 1024
        chosen = random.Random(number).sample(range(streams), CANCELS)
        took = [_cancel(worker.port, opened[n], f"c{n}") for n in chosen]
        worker.process.kill()  # Its end is not what is measured.
        for stream in opened:
            stream.close()
    return {"ours": quantile(took, 0.99), "median": quantile(took, 0.5), "memory": memory}


def _cancel(port: int, stream: Stream, job_id: str) -> float:
    """Milliseconds from a cancel's request to the terminal event."""
    began = time.perf_counter()
    status, _ = ask(port, "POST", "/cancel", {"job_id": job_id})
    if status != 202:
        raise RuntimeError(f"a cancel was answered with {status}")
    while b"CANCELLED" not in stream.raw:
        stream.take()
        if stream.ended:
            raise RuntimeError(f"{job_id} ended otherwise: {bytes(stream.raw[-300:])!r}")
    return (time.perf_counter() - began) * 1000
