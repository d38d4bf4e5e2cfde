"""The client library: leaving a job's block cancels the job, however the block is left.

    from worker_orcd.client import Client

    async with Client("http://127.0.0.1:8080") as client:
        async with client.execute("Write a long story", max_tokens=500) as job:
            async for token in job:
                print(token.text, end="")
                if enough:
                    receipt = await job.cancel()   # or just break: leaving the block cancels it, too

Leaving the inner block early, an exception, `task.cancel()`, `asyncio.timeout` and closing a generator all stop the job
on the worker. The client does this with `POST /cancel`, because a proxy may hide a closed connection. `SyncClient` is
the same without `async`; there, Ctrl-C also stops the job.
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
