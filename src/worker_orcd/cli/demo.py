"""`worker-orcd demo`: cancel jobs on the bundled model and check each promise. Fails if one is broken."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from worker_orcd.child_process import end, free_port, wait_until
from worker_orcd.cli.failure import fail
from worker_orcd.cli.output import notice, write_json
from worker_orcd.cli.receipts import receipt_line
from worker_orcd.cli.streams import OutputLost
from worker_orcd.client import Answer, Event, Receipt, SyncClient, WorkerError
from worker_orcd.printable import printable, readable
from worker_orcd.settings import VARIABLE_PREFIX, variable

Json = dict[str, Any]

STOPPED_WITHIN_MS = 100.0
"""The promised time."""

_WORKER = (sys.executable, "-m", "worker_orcd", "serve", "--log-format", "json", "--drain-sec", "1")
_STORY_TOKENS = 240
_LOAD_PATIENCE_SEC = 120.0
_READ_PATIENCE_SEC = 120.0
_STOP_PATIENCE_SEC = 15.0
_LONG_PROMPT_SENTENCES = 133
"""About 2,000 tokens."""


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="one check per line, as JSON, and nothing else")
    ] = False,
) -> None:
    """Cancel three jobs on the bundled model and check each promise.

    The demo starts its own worker and takes about 15 seconds. On a busy machine, WORKER_ORCD_THREADS=1 makes it faster;
    all other variables of the worker are ignored.

    Exit codes: 0 every promise was kept, 1 one was broken.
    """
    console = Console(highlight=False, emoji=False, soft_wrap=True, quiet=as_json)
    checks = Checks(console, as_json=as_json)
    _end_properly_when_terminated()
    log = _new_log()
    try:
        # The pool is closed last: its threads end when the worker's streams do.
        with ThreadPoolExecutor(1, "client") as pool, _worker(console, checks, log) as url:
            stage = _Stage(console, checks, url, pool)
            with SyncClient(url) as first, SyncClient(url) as second:
                _while_generating(stage, first, second)
                _while_reading(stage, first, second)
                _unknown_job(stage, second)
    except (WorkerError, TimeoutError) as error:
        code = error.code if isinstance(error, WorkerError) else "INTERNAL"
        fail(code, f"{error}; the worker's log is in {log}")
    except OutputLost:
        log.unlink()
        raise
    except (KeyboardInterrupt, SystemExit):
        log.unlink()
        notice("worker-orcd: interrupted; the worker has been stopped")
        raise
    if checks.failed:
        fail("INTERNAL", f"not as promised: {'; '.join(checks.failed)}; the worker's log is in {log}")
    log.unlink()
    console.print("\n[bold green]Everything as promised.[/]")


@dataclass(slots=True)
class Checks:
    """The promises checked so far, each kept or broken."""

    console: Console
    as_json: bool = False
    failed: list[str] = field(default_factory=list)

    def check(self, kept: bool, what: str) -> None:
        """Show one promise as kept or broken."""
        self.console.print("  [green]✓[/]" if kept else "  [bold red]✗ NOT AS PROMISED:[/]", end=" ")
        self.console.print(printable(what), markup=False)
        if self.as_json:
            write_json({"kept": kept, "what": what})
        if not kept:
            self.failed.append(what)

    def accepted(self, answer: Answer, job_id: str, what: str) -> None:
        """Check that the response to a cancel was 202 with exactly the documented body."""
        expected = {"status": "cancelling", "job_id": job_id}
        self.check(answer == Answer(202, expected), f"{what}: {answer.status} {json.dumps(answer.body)}")

    def receipt(self, last: Event, record: Json | None) -> None:
        """Check that the stream ended with CANCELLED in time, and that the record shows all cells freed."""
        self.check(
            last.data.get("code") == "CANCELLED",
            f"the stream's last event: {last.name} {json.dumps(last.data)}",
        )
        receipt = Receipt.of_record(record) if record else None
        if receipt is None:
            self.check(False, "the job's record contains a receipt")
            return
        self.check(
            receipt.stopped_ms <= STOPPED_WITHIN_MS
            and receipt.freed_ms is not None
            and receipt.freed_ms <= receipt.terminal_ms
            and receipt.kv_cells_after == 0,
            f"from the cancel: {receipt_line(receipt)}",
        )

    def cells_are_free(self, before: int, after: int) -> None:
        """Check that the worker's own count of KV cells decreased to zero."""
        self.check(before > 0 and after == 0, f"KV cells in /health: {before} before, {after} after")


@dataclass(frozen=True, slots=True)
class _Stage:
    """The objects that all acts use. The pool's only thread is the second client."""

    console: Console
    checks: Checks
    url: str
    pool: ThreadPoolExecutor

    def title(self, text: str) -> None:
        """Begin an act."""
        self.console.print(f"\n[bold]{text}[/]")


def _while_generating(stage: _Stage, first: SyncClient, second: SyncClient) -> None:
    stage.title("1. A long story, cancelled half-way by a second client")
    job = _job("demo-story", "Write a long story about a lighthouse keeper.", _STORY_TOKENS)
    job_id = job["job_id"]

    def cancel_it() -> tuple[int, Answer]:
        return second.health()["kv_cells_used"], _cancel(second, job_id)

    cancelling = None
    tokens, last = 0, None
    with first.execute(**job) as running:
        for event in running.events():
            last = event
            if event.name == "token":
                tokens += 1
                stage.console.print(readable(event.data["t"]), end="", style="cyan", markup=False)
                stage.console.file.flush()
            if tokens == _STORY_TOKENS // 2 and cancelling is None:
                cancelling = stage.pool.submit(cancel_it)
    after = first.health()["kv_cells_used"]
    stage.console.print()
    if cancelling is None or last is None:
        stage.checks.check(
            False, f"the story is {_STORY_TOKENS} tokens long: it ended after {tokens}: {last}"
        )
        return
    before, answer = cancelling.result()
    stage.checks.accepted(answer, job_id, "the cancel")
    stage.checks.receipt(last, first.job(job_id))
    stage.checks.cells_are_free(before, after)
    stage.checks.accepted(_cancel(second, job_id), job_id, "a second cancel of the same job")


def _while_reading(stage: _Stage, first: SyncClient, second: SyncClient) -> None:
    stage.title("2. A cancel in the middle of the prefill of a long prompt")
    idle_ms = sorted(_first_token_ms(second, f"demo-idle-{number}") for number in (1, 2, 3))[1]
    # Without the cache, because otherwise a repeated demo on the same worker would have nothing to compute.
    job = _job("demo-report", _long_prompt(), 16, template="none", cache_prompt=False)
    job_id = job["job_id"]

    def read() -> list[Event]:
        with first.execute(**job) as running:
            return list(running.events())

    reading = stage.pool.submit(read)
    record = wait_until(
        lambda: _a_third_read(second, job_id),
        within_sec=_READ_PATIENCE_SEC,
        what="a third of the prompt to be computed",
    )
    if record["ended_ms"] is None:
        total, done = record["prompt_tokens"], record["prompt_tokens_processed"]
        stage.console.print(f"  {done} of {total} prompt tokens are computed when it is cancelled")
    before = second.health()["kv_cells_used"]
    answer = _cancel(second, job_id)
    seen = reading.result()
    after = second.health()["kv_cells_used"]
    next_ms = _first_token_ms(second, "demo-next")
    stage.checks.accepted(answer, job_id, "the cancel")
    stage.checks.receipt(seen[-1], first.job(job_id))
    stage.checks.check(
        [event.name for event in seen] == ["started", "error"] and seen[-1].data.get("phase") == "prefill",
        "it was still prefilling, and there was no token",
    )
    stage.checks.cells_are_free(before, after)
    stage.console.print(
        f"  the next job's first token came after {next_ms:.0f} ms; on the idle worker, before: {idle_ms:.0f} ms"
    )


def _unknown_job(stage: _Stage, client: SyncClient) -> None:
    stage.title("3. A cancel of a job that never existed")
    stage.checks.accepted(_cancel(client, "demo-never-was"), "demo-never-was", "the cancel")


def _cancel(client: SyncClient, job_id: str) -> Answer:
    """Cancel over HTTP rather than with the client library, to show the worker's own answer."""
    return client.ask("POST", "/cancel", body={"job_id": job_id}, allowed=(202,))


def _job(job_id: str, prompt: str, max_tokens: int, **more: object) -> Json:
    return {
        "job_id": job_id,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "seed": 42,
        "ignore_eos": True,
        **more,
    }


def _first_token_ms(client: SyncClient, job_id: str) -> float:
    """Milliseconds from sending a short job to its first token."""
    started = time.monotonic()
    first: float | None = None
    with client.execute(**_job(job_id, "Name three birds.", 4)) as running:
        for event in running.events():
            if event.name == "token" and first is None:
                first = time.monotonic()
    if first is None:
        raise WorkerError("INTERNAL", f"{job_id} generated no token")
    return (first - started) * 1000


def _a_third_read(client: SyncClient, job_id: str) -> Json | None:
    record = client.job(job_id)
    if record is None:
        return None
    far_enough = record["prompt_tokens_processed"] * 3 > (record["prompt_tokens"] or float("inf"))
    return record if far_enough or record["ended_ms"] is not None else None


def _long_prompt() -> str:
    """A prompt of about 2,000 tokens in which no two sentences are the same."""
    who = ("keeper", "captain", "baker", "painter", "doctor", "sailor", "teacher")
    did = ("wrote down", "talked about", "forgot", "measured", "described", "drew")
    what = ("the tide", "an old map", "seven lanterns", "the northern wind", "a broken clock")
    where = ("in the harbour", "by the river", "on the hill", "near the station")
    sentences = (
        f"On day {day} the {who[day % 7]} {did[day % 6]} {what[day % 5]} {where[day % 4]}."
        for day in count(1)
    )
    return " ".join(islice(sentences, _LONG_PROMPT_SENTENCES)) + " In short,"


# The worker.


@contextmanager
def _worker(console: Console, checks: Checks, log: Path) -> Iterator[str]:
    """A worker process on a free port, from its start to its end. Yields its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == variable("threads") or not name.startswith(VARIABLE_PREFIX)
    }
    console.print("Starting a worker on the bundled model …")
    started = time.monotonic()
    with log.open("wb") as narration:
        process = subprocess.Popen(  # noqa: S603  # ourselves
            [*_WORKER, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=narration,
            stderr=narration,
            env=environment,
            start_new_session=True,  # So that Ctrl-C reaches only the demo, which ends the worker itself.
        )
    try:
        with SyncClient(url) as client:
            health = wait_until(
                lambda: _healthy(client, process, log),
                within_sec=_LOAD_PATIENCE_SEC,
                what="the model to load",
            )
        console.print(
            f"{printable(health['model'])} is ready on {printable(health['device'])} after "
            f"{time.monotonic() - started:.1f} s: {url}, {health['kv_cells_total']} KV cells"
        )
        yield url
        console.print("\n[bold]The worker gets SIGTERM[/]")
        code = end(process, _STOP_PATIENCE_SEC)
        checks.check(code == 0, f"its exit code: {code}")
    except subprocess.TimeoutExpired:
        checks.check(False, f"it ends within {_STOP_PATIENCE_SEC:.0f} s")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            end(process, _STOP_PATIENCE_SEC)


def _healthy(client: SyncClient, process: "subprocess.Popen[bytes]", log: Path) -> Json | None:
    if process.poll() is not None:
        lines = log.read_text(errors="replace").splitlines() or ["without output"]
        raise WorkerError("MODEL_LOAD_FAILED", f"the worker exited with {process.returncode}: {lines[-1]}")
    with contextlib.suppress(WorkerError):
        health = client.health()
        return health if health["status"] == "healthy" else None
    return None


def _new_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="worker-orcd-demo-", suffix=".jsonl")
    os.close(descriptor)
    return Path(name)


def _end_properly_when_terminated() -> None:
    """Also end the worker on a signal that ends the demo. It runs in its own session and does not get the signal."""

    def leave(number: int, _: Any) -> NoReturn:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
