"""Helpers of the tests over HTTP."""

import itertools
import json
import random
import socket
import time
from itertools import count
from typing import Any, cast

import psutil

from worker_orcd.testing.harness import RunningWorker, Stream, wait_until
from worker_orcd.testing.trials import stopped_in_time

TRIALS = 20
"""How often a client leaves before the time to notice it is judged."""

_numbers = count(1)


def fresh_id(name: str = "job") -> str:
    """A job id that no test has used before."""
    return f"{name}-{next(_numbers)}"


def own_memory(process: psutil.Process) -> int:
    """Bytes of memory that a process has to itself: without the model file and the prefix store, which are shared."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def script(length: int = 0, **does: object) -> str:
    """A prompt that tells the scripted engine what to do, `length` tokens long at least.

    A long one is different each time, so that no part of it is in the prefix cache.
    """
    return f"{json.dumps(does)} {next(_numbers) if length else ''} ".ljust(length, "x")


_numbers = itertools.count()


SLOW = script(token_ms=20)
"""A prompt whose job takes its time."""


def undisturbed(tokens: int) -> str:
    """The text of a greedy job without a script."""
    return "".join(f"w{n} " for n in range(tokens))


def at_rest(worker: RunningWorker) -> None:
    """Wait until a worker is healthy and no job runs, waits, or holds a cell."""

    def look() -> bool:
        health = worker.health()
        busy = health["jobs_running"] or health["jobs_queued"] or health["kv_cells_used"]
        return health["status"] == "healthy" and not busy

    wait_until(look, within_sec=15.0, what="a worker at rest")


def stop_everything(worker: RunningWorker) -> None:
    """Cancel all live jobs of a worker."""
    for job in worker.client.get("/jobs").json()["jobs"]:
        if job["ended_ms"] is None:
            worker.cancel(job["job_id"])


def in_prefill(worker: RunningWorker, stream: Stream, least: int = 1) -> None:
    """Wait until a job's prefill has processed at least `least` tokens."""
    wait_until(lambda: worker.record(stream.job_id)["prompt_tokens_processed"] >= least, what="some prefill")


def in_a_first_step(stream: Stream) -> Stream:
    """Wait for a random moment in the first, long step of a job's prefill."""
    time.sleep(random.uniform(0.02, 0.12))
    return stream


def queued(worker: RunningWorker, stream: Stream) -> Stream:
    """Wait until a job is queued and its prompt counted."""
    stream.wait(lambda s: s.status is not None, what="an answer")
    wait_until(lambda: worker.record(stream.job_id)["prompt_tokens"] is not None, what="a counted prompt")
    assert worker.record(stream.job_id)["state"] == "queued"
    return stream


def ended_state(worker: RunningWorker, job_id: str) -> dict[str, object]:
    """Wait until a job has ended, and return its record."""
    return wait_until(
        lambda: record if (record := worker.record(job_id)).get("ended_ms") is not None else None,
        what=f"the end of {job_id}",
    )


def leave_and_measure(worker: RunningWorker, stream: Stream, phase: str) -> float:
    """Disconnect. Returns the ms until the worker had stopped and freed the job, by its own record; closing the socket
    and the delivery of the FIN count."""
    left_at = time.time()
    stream.leave()
    record = ended_state(worker, stream.job_id)
    assert record["state"] == "cancelled"
    receipt = cast(dict[str, Any], record["receipt"])
    assert receipt["reason"] == "disconnect"
    assert receipt["phase"] == phase
    assert receipt["kv_cells_after"] == 0
    ended_at = wall(cast(str, record["accepted_at"])) + cast(float, record["ended_ms"]) / 1000
    return (ended_at - left_at) * 1000


def assert_prompt(took_ms: list[float]) -> None:
    """Check that jobs stopped within 100 ms of the socket closing. If only writes or polls noticed the disconnect, many
    would be late."""
    assert len(took_ms) >= TRIALS
    stopped_in_time("left", took_ms)


def receipt_of(worker: RunningWorker, job_id: str, reason: str = "client") -> dict[str, Any]:
    """Wait until a job was stopped for this reason, and return its receipt."""
    record = ended_state(worker, job_id)
    assert record["state"] == "cancelled", record
    receipt: Any = record["receipt"]
    assert receipt["reason"] == reason
    return dict(receipt)


def raw_exchange(worker: RunningWorker, sent: bytes) -> bytes:
    """Send bytes on a connection of their own and read until the worker closes it."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10.0) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def stalled_client(worker: RunningWorker, job_id: str, **fields: object) -> socket.socket:
    """A client that requests a job and never reads."""
    body = json.dumps({"job_id": job_id, **fields}).encode()
    head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", worker.port))
    client.sendall(head + body)
    return client


def raw_body(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def is_gone(pid: int) -> bool:
    """Whether no process has this id any more; one that only waits to be reaped counts as gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wall(rfc3339: str) -> float:
    """Seconds since the epoch of a time as the worker writes it."""
    seconds, _, fraction = rfc3339.removesuffix("Z").partition(".")
    return time.mktime(time.strptime(seconds, "%Y-%m-%dT%H:%M:%S")) - time.timezone + float(f"0.{fraction}")
