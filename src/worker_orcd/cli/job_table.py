"""Shows the worker and its jobs as a table, or as a list if the table is too wide."""

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker_orcd.printable import printable_values

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
_NUMBERS = ("PROMPT", "OUT", "AGE", "STOPPED", "FREED")
_IDS = ("JOB", "GROUP")
_DISPENSABLE = ("FREED", "STOPPED", "AGE", "PROMPT", "GROUP", "PHASE", "OUT")
"""Columns that are dropped on a narrow screen, first to last."""
_SHORTEST_ID = 12
_GAP = 1


def board(health: Json, records: Sequence[Json], width: int | None) -> RenderableType:
    """The worker and all jobs. No value is shortened, and lines break at words.

    Args:
        health: the body of `GET /health`.
        records: the jobs' records.
        width: columns of the terminal; None without a terminal: then each job is one line, however long.
    """
    rows = _rows(records)
    if width is None or _width_of(rows) <= width:
        return Group(*wrapped(header(health), width), _table(rows))
    return Group(*wrapped(header(health), width), *_listed(rows, width))


def header(health: Json) -> Text:
    """The worker in one line."""
    health = printable_values(health)
    status = health["status"]
    facts = [
        f"{health['model'] or 'no model yet'} on {health['device'] or '?'}",
        f"KV cells {_load(health, 'kv_cells_used')}/{health['kv_cells_total']}",
        f"cached {_load(health, 'kv_cells_cached')}",
        f"running {_load(health, 'jobs_running')}",
        f"queued {_load(health, 'jobs_queued')}",
        f"engine {health['engine_pid'] or '-'}",
        f"restarts {health['engine_restarts']}",
    ]
    if health.get("reason"):
        facts.insert(0, health["reason"])
    return Text.assemble((status, _STYLES.get(status, "red")), "  ", "  ".join(facts))


def _load(health: Json, figure: str) -> str:
    """A load figure, or a dash if only operators may see it."""
    value = health.get(figure)
    return "-" if value is None else str(value)


def fitted(records: Sequence[Json], width: int, selected: int | None) -> Table:
    """A table of at most `width` columns with one line for each job. Long ids are shortened, and columns that do not
    fit are left out.

    Args:
        records: the jobs' records.
        width: columns of the terminal.
        selected: index of the selected job.
    """
    rows = _rows(records)
    for heading in _DISPENSABLE:
        if _width_of(rows, _SHORTEST_ID) <= width:
            break
        for row in rows:
            row.pop(heading, None)
    ids = [heading for heading in _IDS if heading in rows[0]]
    room = max(1, (width - _width_of(rows, 0)) // len(ids))
    for row in rows:
        row |= {heading: _cut(row[heading], room) for heading in ids}
    return _table(rows, selected)


def wrapped(text: Text, width: int | None, indent: str = "") -> list[Text]:
    """The lines of a text, broken at words. A word that is longer than a line is not broken."""
    if width is None:
        return [_line(text)]
    lines, begin = [], 0
    plain = textwrap.wrap(
        text.plain,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, shown in enumerate(plain):
        words = shown.removeprefix(indent) if number else shown
        begin = text.plain.index(words, begin)
        lines.append(_line(Text.assemble(indent if number else "", text[begin : begin + len(words)])))
        begin += len(words)
    return lines


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _rows(records: Sequence[Json]) -> list[dict[str, str]]:
    """Each job's values by column heading. The column for groups exists only if there are groups."""
    now = datetime.now(UTC)
    with_groups = any(record["group"] for record in records)
    rows = [{"JOB": "JOB"} | {heading: heading for heading in ("STATE", "PHASE", *_NUMBERS)}]
    rows += [_row(printable_values(record), now) for record in records]
    if with_groups:
        rows[0]["GROUP"] = "GROUP"
        for row, record in zip(rows[1:], records, strict=True):
            row["GROUP"] = printable_values(record["group"] or "")
    return rows


def _row(record: Json, now: datetime) -> dict[str, str]:
    receipt = record["receipt"] or {}
    total = record["prompt_tokens"]
    return {
        "JOB": record["job_id"],
        "STATE": record["state"],
        "PHASE": record["phase"],
        "PROMPT": f"{record['prompt_tokens_processed']}/{'?' if total is None else total}",
        "OUT": str(record["tokens_out"]),
        "AGE": _age(record["accepted_at"], now),
        "STOPPED": _ms(receipt.get("stopped_ms")),
        "FREED": _ms(receipt.get("freed_ms")),
    }


def _width_of(rows: Sequence[dict[str, str]], longest_id: int | None = None) -> int:
    """Width of a table of these rows, with ids shortened to `longest_id` if given."""
    widths = {heading: max(cell_len(row[heading]) for row in rows) for heading in rows[0]}
    if longest_id is not None:
        widths |= {heading: longest_id for heading in _IDS if heading in widths}
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _table(rows: Sequence[dict[str, str]], selected: int | None = None) -> Table:
    table = Table(expand=False, pad_edge=False, padding=(0, _GAP, 0, 0), box=None, header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", no_wrap=True)
    for place, row in enumerate(rows[1:]):
        cells = {heading: Text(text) for heading, text in row.items()}
        cells["STATE"].stylize(_STYLES.get(row["STATE"], ""))
        table.add_row(*cells.values(), style="reverse" if place == selected else None)
    return table


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _listed(rows: Sequence[dict[str, str]], width: int) -> list[Text]:
    """Each job as a line with its id, followed by lines with its other values."""
    lines = []
    for row in rows[1:]:
        lines.append(_line(Text(row["JOB"], "bold")))
        facts = [row["STATE"], row["PHASE"]]
        facts += [f"{heading.lower()} {row[heading]}" for heading in (*_NUMBERS, "GROUP") if row.get(heading)]
        about = Text("  " + "  ".join(facts))
        about.stylize(_STYLES.get(row["STATE"], ""), 2, 2 + len(row["STATE"]))
        lines += wrapped(about, width, "  ")
    return lines


def _age(accepted_at: str, now: datetime) -> str:
    try:
        seconds = max(0.0, (now - datetime.fromisoformat(accepted_at)).total_seconds())
    except (TypeError, ValueError):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"
