"""The table of jobs at any width: no word and no number is broken."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from worker_orcd.cli import job_table

RECEIPT = {"stopped_ms": 1.5, "freed_ms": 1234.5}
HEALTH: dict[str, Any] = {
    "status": "healthy",
    "model": "a-model-whose-name-has-more-characters-than-a-narrow-terminal",
    "device": "cpu",
    "kv_cells_used": 12345,
    "kv_cells_total": 16384,
    "jobs_running": 1,
    "jobs_queued": 0,
    "engine_pid": 4711,
    "engine_restarts": 0,
}


def record(job_id: str, group: str | None = None, receipt: Any = None) -> dict[str, Any]:
    """A job's record, with the fields that the table shows."""
    return {
        "job_id": job_id,
        "state": "cancelled" if receipt else "running",
        "phase": "decode",
        "prompt_tokens": 2048,
        "prompt_tokens_processed": 2048,
        "tokens_out": 1234567,
        "accepted_at": "2026-01-01T00:00:00Z",
        "receipt": receipt,
        "group": group,
        "ended_ms": 9.0 if receipt else None,
    }


RECORDS = [record("short"), record("0b0f8c3e-1111-2222-3333-444455556666", "night-batch", RECEIPT)]
WORDS = {"2048/2048", "1234567", "cancelled", "running", "decode", "1.5", "1234.5", RECORDS[1]["job_id"]}


def shown(what: Any, width: int | None) -> list[str]:
    """The lines of the table."""
    console = Console(file=io.StringIO(), width=width or 10_000, emoji=False, highlight=False)
    console.print(what, crop=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200, None])
def test_the_table_breaks_at_words(width: int | None) -> None:
    """Each word and number stands whole in a line; only a word that is longer than a line makes the line longer."""
    lines = shown(job_table.board(HEALTH, RECORDS, width), width)
    words = {word for line in lines for word in line.split()}
    assert words >= WORDS | {HEALTH["model"], "12345/16384", "night-batch"}
    too_long = [line for line in lines if len(line) > (width or 10_000)]
    assert [line for line in too_long if len(line.split()) > 1] == []


def test_piped_each_job_has_a_line_however_long_its_id() -> None:
    """For `grep` and `awk`."""
    lines = shown(job_table.board(HEALTH, [record("x" * 256, "y" * 256)], None), None)
    assert [len(lines), lines[2].split()[0], lines[2].split()[-1]] == [3, "x" * 256, "y" * 256]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_the_watch_cuts_ids_and_leaves_columns_out_but_cuts_no_number(width: int) -> None:
    """Each job has one line at any width; job and state are always shown."""
    lines = shown(job_table.fitted(RECORDS, width, 0), width)
    assert len(lines) == 1 + len(RECORDS)
    assert max(map(len, lines)) <= width
    headings = lines[0].split()
    assert headings[:2] == ["JOB", "STATE"]
    whole = re.compile(
        r"2048/2048|1234567|1\.5|1234\.5|ms|\d+m\d\ds|decode|running|cancelled|night\S*|\S*…|short"
    )
    uncut = {RECORDS[1]["job_id"]}
    words = {word for line in lines[1:] for word in line.split()}
    assert [word for word in words - uncut if not whole.fullmatch(word)] == []
    assert width < 200 or headings[-1] == "GROUP"


def test_lines_break_at_spaces_and_keep_their_styles() -> None:
    """Also where the same text occurs twice with different styles."""
    lines = job_table.wrapped(Text.assemble("on on ", ("on", "red"), " on"), 5)
    assert [line.plain for line in lines] == ["on on", "on on"]
    assert [len(line.spans) for line in lines] == [0, 1]
