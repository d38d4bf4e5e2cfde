"""Submits the jobs of one request: all of them or none."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from worker_orcd.api.access import owner_of
from worker_orcd.api.error_responses import EndedBeforeStart
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.jobs.events import Error
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.narration.context import correlation_id
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream

MEASURE_PATIENCE_SEC = 1.0
"""How long the response waits for the prompts to be counted, so that a prompt that does not fit can still get a 400."""
T = TypeVar("T")


async def submit(
    worker: WorkerInterface, request: Request, asked: Sequence[JobRequest], *, may_retry: bool = False
) -> list[JobStream]:
    """Submit jobs, and wait a short time until their prompts are counted.

    Meanwhile the client is a reader of each job, so that no other reader's leaving stops the jobs. The caller must make
    it a permanent reader at once.

    Args:
        worker: runs the jobs.
        request: the request with the jobs.
        asked: the jobs.
        may_retry: whether clients of this API automatically retry a cancelled request. Then a request with the id of a
            job that a client cancelled a short time ago counts as a retry: its first job ends at once, and no others
            are submitted.

    Raises:
        JobError: one job is refused; then the others are not submitted, or are stopped.
        ClientDisconnect: the client has left; then all jobs are stopped.
    """
    streams: list[JobStream] = []
    try:
        requester, owner = correlation_id.get() or "", owner_of(request)
        retry_of: StopRequest | None = None
        if may_retry:
            names = [one.job_id for one in asked]
            retry_of = await unless_disconnected(request, worker.cancelled_lately(names, owner))
        accepted = asked if retry_of is None else asked[:1]
        streams = await worker.execute(accepted, requester, owner, request.headers, retry_of)
        for stream in streams:
            stream.join()
        await unless_disconnected(request, _measured(worker, streams))
    except ClientDisconnect:
        for stream in streams:
            worker.reader_left(stream)
        raise
    except BaseException:
        for stream in streams:
            stream.leave()
            worker.stop(stream.job, StopReason.DISCONNECT)
        raise
    for stream in streams:
        stream.leave()
    return streams


async def _measured(worker: WorkerInterface, streams: Sequence[JobStream]) -> None:
    """Wait until the prompts are counted, but only while an engine can count them.

    Raises:
        EndedBeforeStart: a job was refused in that time.
    """
    until = time.monotonic() + MEASURE_PATIENCE_SEC
    for stream in streams:
        job = stream.job
        while worker.engine and job.live and job.prompt_tokens is None and time.monotonic() < until:
            await stream.changed(until - time.monotonic())
        match job.terminal:
            case Error(code=ErrorCode.INVALID_REQUEST) as end:
                raise EndedBeforeStart(end)


async def unless_disconnected(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine, unless the client disconnects first.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    done = asyncio.ensure_future(waiting)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        return await done
    finally:
        done.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
