"""The worker and its jobs as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

_STYLES = {
    "queued": "yellow",
    "running": "green",
    "stopping": "magenta",
    "cancelled": "magenta",
    "timed_out": "red",
    "failed": "red",
    "healthy": "green",
}


def board(health: Json, records: Sequence[Json]) -> RenderableType:
    """All of it, as long as it gets."""
    return Group(header(health), jobs(records))


def header(health: Json) -> Text:
    """The worker, in a line."""
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


def jobs(records: Sequence[Json], selected: int | None = None, *, one_line_each: bool = False) -> Table:
    """A row for each job; groups have a column when there are any.

    Args:
        records: the jobs' records.
        selected: which of them is shown as selected.
        one_line_each: ids that are too long are cut and not folded.
    """
    now = datetime.now(UTC)
    with_groups = any(record["group"] for record in records)
    table = Table(expand=False, pad_edge=False, box=None, header_style="bold")
    how: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if one_line_each else {"overflow": "fold"}
    table.add_column("JOB", min_width=12, **how)
    table.add_column("STATE", no_wrap=True)
    table.add_column("PHASE", no_wrap=True)
    for heading in ("PROMPT", "OUT", "AGE", "STOPPED", "FREED"):
        table.add_column(heading, justify="right", no_wrap=True)
    if with_groups:
        table.add_column("GROUP", **how)
    for place, record in enumerate(records):
        cells = _row(record, now)
        group = [record["group"] or ""] if with_groups else []
        table.add_row(*cells, *group, style="reverse" if place == selected else None)
    return table


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
