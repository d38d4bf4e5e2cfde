"""`worker-orcd logs`: follow the worker's narration."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import typer

from worker_orcd.cli.completion_values import known_jobs
from worker_orcd.cli.connection import Url, client_of, plainly
from worker_orcd.cli.output import notice, rendered, write_json
from worker_orcd.client import DEFAULT_URL, Client, WorkerError
from worker_orcd.narration.render import BoundedLine, renderer
from worker_orcd.printable import printable

Level = Literal["INFO", "WARN", "ERROR"]
_LEVELS: tuple[Level, ...] = ("INFO", "WARN", "ERROR")
AGAIN_SEC = 0.5
"""How long to wait before connecting again to a worker that is gone."""

EventFields = dict[str, Any]


def command(
    job_id: Annotated[
        str | None,
        typer.Option(
            "--job", metavar="JOB_ID", help="only what belongs to this job", autocompletion=known_jobs
        ),
    ] = None,
    level: Annotated[
        Level, typer.Option(case_sensitive=False, help="this level and those above it")
    ] = "INFO",
    as_json: Annotated[
        bool, typer.Option("--json", help="one event per line, as the worker logs it")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow the worker's narration.

    Shows recent events, then new ones, until Ctrl-C. When the worker goes away, the command waits for it or its
    successor and continues there.

    Exit codes: 0 left with Ctrl-C, 1 there was no worker to begin with, or it refused.
    """
    levels = _LEVELS[_LEVELS.index(level) :]
    show = write_json if as_json else _columns()

    def show_wanted(event: EventFields) -> None:
        if event.get("level") in levels and job_id in (None, event.get("job_id")):
            show(event)

    with plainly(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_follow(client_of(url), show_wanted))


def _columns() -> Callable[[EventFields], None]:
    """A function that shows events as the worker does on a terminal, in colours if standard output is one."""
    line = BoundedLine(renderer("pretty", sys.stdout))

    def show(event: EventFields) -> None:
        # The values are for the renderer: a traceback in it has lines.
        named = {printable(name): value for name, value in event.items()}
        rendered(line(None, "", {"time": "", **named}))

    return show


async def _follow(client: Client, show: Callable[[EventFields], None]) -> None:
    """Show events until cancelled, connecting again when the worker goes away.

    Raises:
        WorkerError: the first connection failed, or the worker refused one.
    """
    last: str | None = None
    gone = False
    async with client:
        while True:
            why = "it has shut down"
            try:
                async for one in client.narration(after=last):
                    if gone:
                        notice(f"worker-orcd: the worker at {client.url} is back")
                    last, gone = one.id, False
                    show(one.data)
            except WorkerError as error:
                if last is None or not error.retriable:
                    raise
                why = error.message
            if not gone:
                notice(f"worker-orcd: waiting for the worker at {client.url} to come back: {why}")
            gone = True
            await anyio.sleep(AGAIN_SEC)
