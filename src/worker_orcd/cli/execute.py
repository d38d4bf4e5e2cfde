"""`worker-orcd execute PROMPT`: run a job, show its text as it comes, cancel it with Ctrl-C."""

import json
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, Self

import typer

from worker_orcd.cli.client import (
    DEFAULT_URL,
    ClientError,
    Event,
    Json,
    Url,
    WorkerClient,
    connected,
    receipt_line,
)
from worker_orcd.cli.failure import fail, tell

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


def command(  # noqa: PLR0913  # to typer, an option is an argument
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="the prompt; - reads it from standard input")
    ],
    job_id: Annotated[
        str | None, typer.Option(help="what the job is called; left out: cli- and 8 hex digits")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="at most so many tokens")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 to 2; 0 is greedy")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="0 to 1; 1 is off")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="0 is off")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="the same seed gives the same draws")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="end before this text; up to four times")
    ] = None,
    template: Annotated[
        Literal["auto", "none"] | None,
        typer.Option(help="auto: the model's chat template; none: the prompt as it is"),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past the model's own end")] = False,
    timeout_ms: Annotated[int | None, typer.Option(metavar="MS", help="the job's own deadline")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one event per line, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a job and show its text as it comes. Ctrl-C cancels it and says how that went.

    Exit codes: 0 the job ended, 1 it was refused, failed or was cancelled from elsewhere, 130 cancelled by Ctrl-C.
    What is left out is as the worker has it.
    """
    options: Json = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "template": template,
        "ignore_eos": ignore_eos or None,
        "timeout_ms": timeout_ms,
    }
    body = {
        "job_id": job_id or f"cli-{secrets.token_hex(4)}",
        "prompt": _prompt(prompt),
        **{name: value for name, value in options.items() if value is not None},
    }
    with connected(url) as client:
        raise typer.Exit(_run(client, body, _JsonLines() if as_json else _Text(body["job_id"])))


class CancelOnInterrupt:
    """Ctrl-C while a job runs: the first one cancels the job and lets its stream end, the second one leaves."""

    def __init__(self, client: WorkerClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self.asked = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def accepted(self) -> None:
        """The job is known to the worker now; a cancel that came before that may have met nobody."""
        if self.asked:
            self._start_cancel()

    def _on_signal(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._start_cancel()

    def _start_cancel(self) -> None:
        # The main thread sits in the stream, and has to go on reading it.
        threading.Thread(target=self._cancel, daemon=True).start()

    def _cancel(self) -> None:
        try:
            self._client.cancel(self._job_id)
        except ClientError as error:
            tell(f"worker-orcd: {error.code}: {error}")


class _Text:
    """Shows a job's text, as it comes."""

    def __init__(self, job_id: str) -> None:
        self._line_is_open = False
        if sys.stderr.isatty():
            tell(f"job {job_id}; Ctrl-C cancels it, and so does `worker-orcd cancel {job_id}`")

    def show(self, event: Event) -> None:
        """Show what there is to show of an event."""
        if event.name == "token" and event.data["t"]:
            self._line_is_open = not event.data["t"].endswith("\n")
            _write(event.data["t"])
        elif event.terminal and self._line_is_open:
            self._line_is_open = False
            _write("\n")


class _JsonLines:
    """Shows a job's events, one a line."""

    def show(self, event: Event) -> None:
        """Show one event."""
        _write(json.dumps({"id": event.id, "event": event.name, "data": event.data}) + "\n")


def _run(client: WorkerClient, body: Json, view: _Text | _JsonLines) -> int:
    """Run the job to its end. Returns the exit code."""
    with CancelOnInterrupt(client, body["job_id"]) as interrupt:
        with client.execute(body) as events:
            interrupt.accepted()
            last = _follow(events, view.show)
        return _conclude(client, body["job_id"], last, interrupted=interrupt.asked)


def _follow(events: Iterable[Event], show: Callable[[Event], None]) -> Event:
    for event in events:
        show(event)
        if event.terminal:
            return event
    raise ClientError("UNREACHABLE", "the stream broke off before the job's end")


def _conclude(client: WorkerClient, job_id: str, last: Event, *, interrupted: bool) -> int:
    """Say how the job ended, where that is not plain. Returns the exit code."""
    if last.name == "end":
        if interrupted:
            tell(f"job {job_id} had ended before it could be cancelled")
        elif sys.stderr.isatty():
            tell(f"job {job_id}: {last.data['tokens_out']} tokens, {last.data['stop_reason']}")
        return 0
    if last.data["code"] != "CANCELLED":
        fail(last.data["code"], f"{last.data['message']} (correlation id {client.correlation_id})")
    record = client.record(job_id)
    receipt = receipt_line(record) if record and record["receipt"] else "its receipt is not kept any more"
    if interrupted and last.data["reason"] == "client":
        tell(f"job {job_id} cancelled: {receipt}")
        return EXIT_INTERRUPTED
    tell(f"job {job_id} was cancelled from elsewhere (reason {last.data['reason']}): {receipt}")
    return 1


def _prompt(given: str) -> str:
    try:
        text = sys.stdin.buffer.read().decode() if given == "-" else given
        text.encode()  # An argument that was not UTF-8 came in as surrogates.
    except UnicodeError:
        fail("INVALID_REQUEST", "the prompt is not valid UTF-8")
    return text


def _write(text: str) -> None:
    # What the terminal's encoding cannot say is shown as "?" and ends nothing.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
