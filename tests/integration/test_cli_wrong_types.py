"""Every command against a worker whose JSON has another shape than a worker's: one line at most, never a traceback.

Somewhere in one of its answers stands another JSON value, or nothing, or what is no JSON at all.
"""

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from tests.integration.hostile_worker import HostileWorker, serving
from tests.lanes import examples
from worker_orcd.cli import logs
from worker_orcd.cli.main import app
from worker_orcd.cli.streams import guarded
from worker_orcd.cli.watch import _Watching
from worker_orcd.client import Client, WorkerError

GONE = object()
"""In place of a value: it is left out."""
NO_JSON = ("", "worker", "[" * 100_000, '{"jobs": [', "9" * 5000)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["\ud800", -1, [], {}, GONE]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)


@dataclass
class Lie:
    """Which value of which answer is replaced, and by what."""

    path: str
    """Of the request, as far as it distinguishes answers."""
    place: int
    value: Any

    def changed(self, path: str, body: Any) -> str:
        """An answer as text."""
        if not path.startswith(self.path):
            return json.dumps(body)
        if isinstance(self.value, str) and self.value in NO_JSON:
            return self.value
        places = list(_places(body))
        keys = places[self.place % len(places)]
        return json.dumps(_replaced(body, keys, self.value), default=lambda _: None)


def _places(body: Any) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a body, the whole body's first."""
    yield ()
    items = enumerate(body) if isinstance(body, list) else body.items() if isinstance(body, dict) else ()
    for key, value in items:
        yield from ((key, *rest) for rest in _places(value))


def _replaced(body: Any, keys: tuple[Any, ...], value: Any) -> Any:
    if not keys:
        return value
    first, *rest = keys
    if not rest and value is GONE and isinstance(body, dict):
        return {key: old for key, old in body.items() if key != first}
    items = enumerate(body) if isinstance(body, list) else body.items()
    changed = {key: _replaced(old, tuple(rest), value) if key == first else old for key, old in items}
    return list(changed.values()) if isinstance(body, list) else changed


class LyingWorker(HostileWorker):
    """A worker with one wrong value in its answers."""

    lie: ClassVar[Lie]

    def _json(self, body: Any, status: int = 200) -> None:
        self._send(status, "application/json", self.lie.changed(self.path, body))

    def _stream(self, events: list[tuple[str, Any]]) -> None:
        content = ""
        wrong = self.lie.place % len(events)
        for number, (name, data) in enumerate(events):
            text = self.lie.changed(self.path, data) if number == wrong else json.dumps(data)
            text = "[DONE]" if data == "[DONE]" else text
            content += f"id: x.{number}\nevent: {name}\ndata: {text}\n\n"
        self._send(200, "text/event-stream", content)

    def _send(self, status: int, kind: str, content: str) -> None:
        data = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def lies(*paths: str) -> st.SearchStrategy[Lie]:
    """Of a worker that is asked for these."""
    return st.builds(Lie, st.sampled_from(paths), st.integers(0, 60), VALUES | st.sampled_from(NO_JSON))


tried = settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where it listens."""
    with serving(LyingWorker) as address:
        yield address


def run(url: str, lie: Lie, *words: str) -> str:
    """Run a command to its end in this process, on guarded streams. Returns its output; an exception fails the
    test."""
    LyingWorker.lie = lie
    command = get_command(app)
    exit_code: int | str | None = 0
    with CliRunner().isolation(input="hello\n", env={"WORKER_ORCD_URL": url}) as (stdout, stderr, *_):
        try:
            with guarded():
                command.main(list(words), prog_name="worker-orcd")
        except SystemExit as end:
            exit_code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        said = (stdout.getvalue() + stderr.getvalue()).decode()
    assert exit_code in (0, 1)
    assert exit_code == 0 or said.strip()
    return said


def test_half_a_character_is_shown_as_a_question_mark(url: str) -> None:
    """JSON can name it, UTF-8 cannot."""
    said = [run(url, Lie("/execute", place, "\ud800"), "execute", "ok") for place in range(61)]
    assert any(text.startswith("?") for text in said)


@pytest.mark.parametrize("more", [(), ("--json",)], ids=" ".join)
@tried
@given(lie=lies("/health", "/jobs"))
def test_ps(url: str, more: tuple[str, ...], lie: Lie) -> None:
    """Wrong values in health and records."""
    run(url, lie, "ps", *more)


@pytest.mark.parametrize("words", [("known",), ("refused",), ("--group", "g")], ids=" ".join)
@tried
@given(lie=lies("/cancel", "/jobs"))
def test_cancel(url: str, words: tuple[str, ...], lie: Lie) -> None:
    """Wrong values in answers, records, receipts and refusals."""
    run(url, lie, "cancel", *words)


@pytest.mark.parametrize("word", ["ok", "failed", "stopped", "refused"])
@tried
@given(lie=lies("/execute", "/v1/models", "/jobs", "/cancel"))
def test_execute(url: str, word: str, lie: Lie) -> None:
    """Wrong values in events, the model's sampling, and the record of a stopped job."""
    run(url, lie, "execute", word)


@pytest.mark.parametrize("word", ["ok", "failed", "stopped", "refused"])
@tried
@given(lie=lies("/v1/chat", "/v1/models", "/health"))
def test_chat(url: str, word: str, lie: Lie) -> None:
    """Wrong values in OpenAI's chunks."""
    run(url, lie, "chat", "--system", word)


@tried
@given(lie=lies("/narration"))
def test_logs(url: str, lie: Lie) -> None:
    """Wrong values in log events."""
    LyingWorker.lie = lie

    async def follow() -> None:
        async with Client(url) as client:
            async for event in client.narration():
                logs._columns()(event.data)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdout", io.StringIO())
        with contextlib.suppress(WorkerError):
            asyncio.run(follow())


@tried
@given(lie=lies("/health", "/jobs", "/cancel"))
def test_the_watch(url: str, lie: Lie) -> None:
    """What it shows, and what its keys do."""
    LyingWorker.lie = lie
    console = Console(file=io.StringIO(), width=100, height=20)

    async def watch() -> None:
        async with Client(url) as client:
            watching = _Watching(client, console, 5)
            await watching.look()
            console.print(watching._seen())
            for record in watching._live_jobs():
                await watching._stop_job(record)
            await watching._stop_group("g")

    with contextlib.suppress(WorkerError):
        asyncio.run(watch())
