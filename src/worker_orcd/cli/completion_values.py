"""Shell completions from the running worker: job ids and groups. Empty if the worker does not answer quickly."""

import asyncio
from collections.abc import Iterable
from typing import Any

import anyio
import typer

from worker_orcd.cli.connection import client_of
from worker_orcd.client import DEFAULT_URL, WorkerError
from worker_orcd.printable import printable_values

PATIENCE_SEC = 0.5
"""How long a completion waits for the worker."""


def live_jobs(ctx: typer.Context) -> list[tuple[str, str]]:
    """Live jobs, each with its state and phase."""
    return [(record["job_id"], f"{record['state']}, {record['phase']}") for record in _records(ctx, ended=0)]


def known_jobs(ctx: typer.Context) -> list[tuple[str, str]]:
    """Live jobs and recently ended ones, each with its state."""
    return [(record["job_id"], record["state"]) for record in _records(ctx, ended=100)]


def live_groups(ctx: typer.Context) -> list[tuple[str, str]]:
    """Groups of live jobs, each with the number of its live jobs."""
    groups = [record["group"] for record in _records(ctx, ended=0) if record["group"]]
    return [(group, f"{groups.count(group)} live") for group in dict.fromkeys(groups)]


def _records(ctx: typer.Context, *, ended: int) -> Iterable[dict[str, Any]]:
    try:
        records = asyncio.run(_ask(str(ctx.params.get("url") or DEFAULT_URL), ended))
    except WorkerError:
        return []
    return printable_values(records)


async def _ask(url: str, ended: int) -> list[dict[str, Any]]:
    with anyio.move_on_after(PATIENCE_SEC):
        async with client_of(url, retries=0) as client:
            return await client.jobs(ended=ended)
    return []
