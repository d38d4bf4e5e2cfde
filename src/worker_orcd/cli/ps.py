"""`worker-orcd ps`: show the worker and its jobs, once or continuously."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from worker_orcd.cli.connection import Url, client_of, connected, plainly
from worker_orcd.cli.job_table import board
from worker_orcd.cli.output import write_json
from worker_orcd.client import DEFAULT_URL

_ANY_WIDTH = 10_000
"""The width without a terminal: longer than any line."""
MAX_RECENT = 1000
"""The most ended jobs that the worker returns."""


def command(
    live: Annotated[
        bool, typer.Option("--watch/--once", help="show a live view, with keys to stop jobs; or show it once")
    ] = False,
    recent: Annotated[
        int, typer.Option(min=0, max=MAX_RECENT, metavar="N", help="the most ended jobs to show")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="health and job records, once, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the worker and its jobs.

    Live jobs come first, the oldest on top, then recently ended ones, the latest on top. With --watch, on a terminal:
    up and down or j and k select a job, c cancels it and shows its receipt, g cancels its group, q quits.

    Exit codes: 0 shown, or quit; 1 the worker cannot be reached, or refused; 2 wrong usage.
    """
    # A job's id may contain text that rich would treat as markup or an emoji, such as run:100:7.
    console = Console(highlight=False, markup=False, emoji=False)
    if live and (as_json or not console.is_terminal):
        raise typer.BadParameter("--watch requires a terminal, and cannot be combined with --json")
    if live:
        from worker_orcd.cli.watch import watch  # noqa: PLC0415  # only where there are terminals

        with plainly():
            code = asyncio.run(watch(client_of(url), console, recent))
        raise typer.Exit(code)
    with connected(url) as client:
        health, records = client.health(), client.jobs(ended=recent)
    if as_json:
        write_json({"health": health, "jobs": records})
    else:
        width = console.width if console.is_terminal else None
        if width is None:
            console.width = _ANY_WIDTH
        console.print(board(health, records, width), crop=False)
