"""`worker-orcd execute PROMPT`: run a job, show its text as it is generated, cancel it with Ctrl-C."""

import secrets
import sys
from typing import Annotated, Any, Literal

import typer

from worker_orcd.cli.connection import Url, connected
from worker_orcd.cli.constraint import GrammarFile, SchemaFile, constraint_in
from worker_orcd.cli.failure import fail
from worker_orcd.cli.output import Text, notice, write_json
from worker_orcd.cli.receipts import receipt_line
from worker_orcd.cli.run_job import EXIT_INTERRUPTED, Ran, run
from worker_orcd.cli.sampling import with_defaults
from worker_orcd.client import DEFAULT_URL, Event


def command(  # noqa: PLR0913  # Each option is an argument for typer.
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="the prompt; - reads it from standard input")
    ],
    job_id: Annotated[str | None, typer.Option(help="the job's id; default: cli- and 8 hex digits")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="the most tokens to generate")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 to 2; 0 is greedy")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="0 to 1; 1 is off")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="0 is off")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="the same seed gives the same draws")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="end before this text; up to 16 times")
    ] = None,
    template: Annotated[
        Literal["auto", "none"] | None,
        typer.Option(help="auto: the model's chat template; none: the unchanged prompt"),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="continue past the model's end token")
    ] = False,
    min_p: Annotated[float | None, typer.Option(metavar="X", help="0 is off")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(metavar="X", help="1 is off")] = None,
    presence_penalty: Annotated[float | None, typer.Option(metavar="X", help="-2 to 2; 0 is off")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(metavar="X", help="-2 to 2; 0 is off")] = None,
    json_schema: SchemaFile = None,
    grammar: GrammarFile = None,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="jobs that can be cancelled together")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(metavar="N", help="lower runs first, and may preempt running jobs with a higher one"),
    ] = None,
    supersedes: Annotated[
        str | None, typer.Option(metavar="KEY", help="stop the live jobs with the same key, and replace them")
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(metavar="MS", help="the job's own time limit")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one event per line, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a job and show its text as it is generated.

    Ctrl-C cancels the job and shows the receipt; a second Ctrl-C exits at once.

    Exit codes: 0 the job ended; 1 it was refused, failed or was cancelled by another client; 2 wrong usage; 130
    cancelled by Ctrl-C.

    The default sampling is that which the model's authors recommend in its file; without it, temperature 0.3 and top-p
    0.9. The defaults of all other options are the worker's.
    """
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "template": template,
        "ignore_eos": ignore_eos or None,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "group": group,
        "priority": priority,
        "supersedes": supersedes,
        "timeout_ms": timeout_ms,
    }
    text = _prompt(prompt)
    name = job_id or f"cli-{secrets.token_hex(4)}"
    given = {option: value for option, value in options.items() if value is not None}
    given |= constraint_in(json_schema, grammar)
    with connected(url) as client:
        if not as_json and sys.stderr.isatty():
            notice(f"job {name}; to cancel it: Ctrl-C, or `worker-orcd cancel {name}`")
        sampled = with_defaults(client, given)
        sampled["progress"] = not as_json and sys.stderr.isatty()
        ran = run(
            client, client.execute(text, job_id=name, **sampled), _show_line if as_json else Text().show
        )
        raise typer.Exit(_conclude(name, ran, client.correlation_id))


def _show_line(event: Event) -> None:
    write_json({"id": event.id, "event": event.name, "data": event.data})


def _conclude(job_id: str, ran: Ran, correlation_id: str) -> int:
    """Print how the job ended, unless it is obvious. Returns the exit code."""
    data = ran.last.data
    if ran.last.name == "end":
        if ran.interrupted:
            notice(f"job {job_id} had ended before it could be cancelled")
        elif sys.stderr.isatty():
            notice(f"job {job_id}: {data['tokens_out']} tokens, {data['stop_reason']}")
        return 0
    if not ran.cancelled:
        fail(data["code"], f"{data['message']} (correlation id {correlation_id})")
    receipt = receipt_line(ran.receipt)
    if ran.ours:
        notice(f"job {job_id} cancelled: {receipt}")
        return EXIT_INTERRUPTED
    notice(f"job {job_id} was cancelled by another client (reason {ran.reason}): {receipt}")
    return 1


def _prompt(given: str) -> str:
    try:
        text = sys.stdin.buffer.read().decode() if given == "-" else given
        text.encode()  # Fails for surrogates, which represent an argument that was not UTF-8.
    except UnicodeError:
        fail("INVALID_REQUEST", "the prompt is not valid UTF-8")
    return text
