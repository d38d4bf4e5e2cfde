"""Connects commands to a running worker, and shows its errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from worker_orcd.cli.failure import fail
from worker_orcd.client import Client, SyncClient, WorkerError, WorkerUnreachable

Url = Annotated[str, typer.Option("--url", envvar="WORKER_ORCD_URL", help="address of the worker")]
"""The option `--url` of every client command."""

_WHERE = "is it running? Start one with `worker-orcd serve`; set its address with --url or WORKER_ORCD_URL"


@contextmanager
def connected(url: str) -> Iterator[SyncClient]:
    """A client for one command. Prints any failure of the worker as one line and exits with 1."""
    with plainly(), SyncClient(url, api_key=_api_key()) as client:
        yield client


def client_of(url: str, *, retries: int = 2) -> Client:
    """An asynchronous client for one command that does several things concurrently."""
    return Client(url, api_key=_api_key(), retries=retries)


@contextmanager
def plainly() -> Iterator[None]:
    """Print any failure of the worker as one line and exit with 1."""
    try:
        yield
    except WorkerError as error:
        fail(error.code, explained(error))


def explained(error: WorkerError) -> str:
    """An error's message, with advice."""
    hints = []
    if isinstance(error, WorkerUnreachable) and not error.sent:
        hints.append(_WHERE)
    if error.code == "UNAUTHORIZED":
        hints.append("set the key with WORKER_ORCD_API_KEY")
    reported = "; ".join([error.message, *hints])
    return f"{reported} (correlation id {error.correlation_id})" if error.correlation_id else reported


def _api_key() -> str | None:
    """The API key from the environment. There is no flag, because every user of the machine can read command lines."""
    return os.environ.get("WORKER_ORCD_API_KEY")
