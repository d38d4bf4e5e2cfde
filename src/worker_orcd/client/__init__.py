"""A client for programs: a job that you leave is cancelled, whichever way you leave it.

    from worker_orcd.client import Client

    async with Client("http://127.0.0.1:8080") as client:
        async with client.execute("Write a long story", max_tokens=500) as job:
            async for token in job:
                print(token.text, end="")
                if enough:
                    receipt = await job.cancel()   # or just break: leaving the block cancels it, too

Leaving the inner block early, an exception, `task.cancel()`, `asyncio.timeout` and a generator that is closed all stop
the job on the worker, by `POST /cancel` and not by closing the connection, which a proxy may hide. `SyncClient` is the
same without `async`; there it is Ctrl-C.
"""

from worker_orcd.client.async_client import Client
from worker_orcd.client.connection import CANCEL_SEC
from worker_orcd.client.errors import JobCancelled, JobFailed, WorkerError, WorkerRefused, WorkerUnreachable
from worker_orcd.client.job import Job
from worker_orcd.client.model import (
    DEFAULT_URL,
    Answer,
    Ending,
    Event,
    NarrationEvent,
    Progress,
    Receipt,
    Token,
)
from worker_orcd.client.sync import SyncClient, SyncJob

__all__ = [
    "CANCEL_SEC",
    "DEFAULT_URL",
    "Answer",
    "Client",
    "Ending",
    "Event",
    "Job",
    "JobCancelled",
    "JobFailed",
    "NarrationEvent",
    "Progress",
    "Receipt",
    "SyncClient",
    "SyncJob",
    "Token",
    "WorkerError",
    "WorkerRefused",
    "WorkerUnreachable",
]
