"""`worker-orcd ps`: the worker and its jobs at a glance, kept up to date on a terminal."""

import json
import signal
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker_orcd.cli.client import DEFAULT_URL, Json, Url, WorkerClient, connected

REFRESH_SEC = 0.5
PIPED_COLUMNS = 160
"""Width of the table where there is no terminal to ask."""

_STYLES = {
    "queued": "yellow",
    "running": "green",
    "stopping": "magenta",
    "cancelled": "magenta",
    "timed_out": "red",
    "failed": "red",
    "healthy": "green",
}


def command(
    once: Annotated[bool, typer.Option("--once", help="show it once, also on a terminal")] = False,
    recent: Annotated[
        int, typer.Option(min=0, metavar="N", help="at most so many jobs that have ended")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="health and job records, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the worker and its jobs: live ones, oldest first, then recent ones, latest first."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    with connected(url) as client:
        if as_json:
            print(json.dumps({"health": client.health(), "jobs": _jobs(client, recent)}))
        elif once or not console.is_terminal:
            console.print(_view(client, recent))
        else:
            _watch(console, client, recent)


def _watch(console: Console, client: WorkerClient, recent: int) -> None:
    """Show it again and again until Ctrl-C. A flag, since an exception at a random place may be swallowed there."""
    asked_to_leave: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: asked_to_leave.append(number))
    with Live(console=console, auto_refresh=False) as live:
        while not asked_to_leave:
            live.update(_view(client, recent), refresh=True)
            time.sleep(REFRESH_SEC)


def _jobs(client: WorkerClient, recent: int) -> list[Json]:
    records = client.jobs()
    live = [record for record in records if record["ended_ms"] is None]
    return live + [record for record in records if record["ended_ms"] is not None][:recent]


def _view(client: WorkerClient, recent: int) -> Group:
    now = datetime.now(UTC)
    table = Table(expand=False, pad_edge=False, box=None, header_style="bold")
    table.add_column("JOB", overflow="fold", min_width=12)
    table.add_column("STATE", no_wrap=True)
    table.add_column("PHASE", no_wrap=True)
    for heading in ("PROMPT", "OUT", "AGE", "STOPPED", "FREED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in _jobs(client, recent):
        table.add_row(*_row(record, now))
    return Group(_header(client.health()), table)


def _header(health: Json) -> Text:
    status = health["status"]
    facts = [
        f"{health['model'] or 'no model yet'} on {health['device'] or '?'}",
        f"KV cells {health['kv_cells_used']}/{health['kv_cells_total']}",
        f"running {health['jobs_running']}",
        f"queued {health['jobs_queued']}",
        f"engine {health['engine_pid'] or '-'}",
        f"restarts {health['engine_restarts']}",
    ]
    if health.get("reason"):
        facts.insert(0, health["reason"])
    return Text.assemble((status, _STYLES.get(status, "red")), "  ", "  ".join(facts))


def _row(record: Json, now: datetime) -> tuple[str | Text, ...]:
    state, receipt = record["state"], record["receipt"] or {}
    total = record["prompt_tokens"]
    age = (now - datetime.fromisoformat(record["accepted_at"])).total_seconds()
    return (
        record["job_id"],
        Text(state, _STYLES.get(state, "")),
        record["phase"],
        f"{record['prompt_tokens_processed']}/{'?' if total is None else total}",
        str(record["tokens_out"]),
        _age(max(0.0, age)),
        _ms(receipt.get("stopped_ms")),
        _ms(receipt.get("freed_ms")),
    )


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"
