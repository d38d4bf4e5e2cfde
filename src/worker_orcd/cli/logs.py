"""`worker-orcd logs`: follow the worker's log events."""

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
"""How long to wait before reconnecting to a lost worker."""

EventFields = dict[str, Any]


def command(
    job_id: Annotated[
        str | None,
        typer.Option("--job", metavar="JOB_ID", help="only events of this job", autocompletion=known_jobs),
    ] = None,
    level: Annotated[Level, typer.Option(case_sensitive=False, help="this level and higher ones")] = "INFO",
    as_json: Annotated[
        bool, typer.Option("--json", help="one event per line, as the worker logs it")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow the worker's log events.

    Shows recent events, then new ones, until Ctrl-C. If the worker ends, the command waits until one is back at the
    same address.

    Exit codes: 0 ended with Ctrl-C; 1 the worker could not be reached at the start, or refused.
    """
    levels = _LEVELS[_LEVELS.index(level) :]
    show = write_json if as_json else _columns()

    def show_wanted(event: EventFields) -> None:
        if event.get("level") in levels and job_id in (None, event.get("job_id")):
            show(event)

    with plainly(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_follow(client_of(url), show_wanted))


def _columns() -> Callable[[EventFields], None]:
    """A function that shows events in the worker's terminal format, with colours if standard output is a terminal."""
    line = BoundedLine(renderer("pretty", sys.stdout))

    def show(event: EventFields) -> None:
        # The renderer makes the values printable, because a traceback has several lines.
        named = {printable(name): value for name, value in event.items()}
        rendered(line(None, "", {"time": "", **named}))

    return show


async def _follow(client: Client, show: Callable[[EventFields], None]) -> None:
    """Show events until cancelled. Reconnects if the worker ends.

    Raises:
        WorkerError: the first connection failed, or the worker refused one.
    """
    last: str | None = None
    gone = False
    async with client:
        while True:
            why = "it shut down"
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
