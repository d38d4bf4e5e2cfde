"""`worker-orcd chat`: a conversation with the model."""

import secrets
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from worker_orcd.cli.connection import Url, connected, explained
from worker_orcd.cli.constraint import GrammarFile, SchemaFile, constraint_in
from worker_orcd.cli.failure import fail
from worker_orcd.cli.output import Text, aside, ask, notice, write_json
from worker_orcd.cli.receipts import receipt_line
from worker_orcd.cli.run_job import EXIT_INTERRUPTED, Ran, run
from worker_orcd.cli.sampling import with_defaults
from worker_orcd.cli.type_ahead import TypeAhead
from worker_orcd.client import DEFAULT_URL, SyncClient, SyncJob, WorkerError

PROMPT = "> "
_HELP = (
    "A line that you type while an answer is generated stops that answer and is answered instead. Ctrl-C stops an "
    "answer. At the prompt, Ctrl-C, Ctrl-D or /exit quits. /reset starts a new conversation."
)
_COMMANDS = ("", "/exit", "/reset", "/help")


def command(  # noqa: PLR0913  # Each option is an argument for typer.
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="system message at the beginning of the conversation")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 to 2; 0 is greedy")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="the most tokens of an answer")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="the same seed gives the same draws")] = None,
    json_schema: SchemaFile = None,
    grammar: GrammarFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="one answer per line, as JSON")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Chat with the model. With piped input, each line is a message, and is answered before the next one is read.

    At a terminal, a line that you type while an answer is generated supersedes that answer.

    Ctrl-C stops the current answer, shows the receipt, and keeps the text so far; a second Ctrl-C, or Ctrl-D, quits.
    /reset starts a new conversation, /exit quits.

    The default sampling is that which the model's authors recommend in its file; without it, temperature 0.3 and top-p
    0.9.

    Exit codes: 0 quit, or the input has ended; 1 the worker cannot be reached; piped: an answer was refused, failed, or
    was cancelled by another client; 130 quit with Ctrl-C.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    given = {option: value for option, value in options.items() if value is not None}
    given |= constraint_in(json_schema, grammar)
    with connected(url) as client:
        terminal = sys.stdin.isatty()
        health = client.health()
        if terminal:
            aside(
                f"{health['model'] or health['status']} at {url}; Ctrl-C stops an answer, Ctrl-D quits, /help"
            )
        sampled = with_defaults(client, given)
        sampled["return_progress"] = not as_json and sys.stderr.isatty()
        if terminal:
            sampled["supersedes"] = f"cli-{secrets.token_hex(8)}"
        chat = _Chat(client, Conversation(system), sampled, terminal=terminal, as_json=as_json)
        try:
            chat.talk()
        except KeyboardInterrupt:
            if terminal:
                aside("")
            raise typer.Exit(EXIT_INTERRUPTED) from None


@dataclass(slots=True)
class Conversation:
    """The messages so far, which are sent with every question."""

    system: str | None = None
    said: list[dict[str, str]] = field(default_factory=list)

    def asking(self, question: str, latest: tuple[str, str] = ("", "")) -> list[dict[str, str]]:
        """The messages to send: the kept ones, the latest question and answer if they are not kept yet, and a new
        question."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self.said, *_exchange(*latest), {"role": "user", "content": question}]

    def keep(self, question: str, answer: str) -> None:
        """Keep a question and its answer."""
        self.said += _exchange(question, answer)

    def forget(self) -> None:
        """Drop all messages but the system message."""
        self.said.clear()


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    """Question and answer as messages. Empty without an answer, because many templates refuse consecutive user
    messages."""
    if not answer:
        return []
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass(slots=True)
class _Turn:
    """A question and the job that answers it."""

    question: str
    job: SyncJob
    begun: bool = False
    """Whether the user typed the question while another one was being answered."""
    said: str | None = None
    """The answer's text at the time when the user typed the next question."""
    next: "_Turn | None" = None
    """That question."""


class _Chat:
    """A conversation with a user at a terminal, or with piped input."""

    def __init__(
        self,
        client: SyncClient,
        conversation: Conversation,
        parameters: dict[str, Any],
        *,
        terminal: bool,
        as_json: bool,
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._parameters = parameters
        self._terminal = terminal
        self._as_json = as_json
        self._typed: deque[bytes] = deque()
        """Commands that the user typed while an answer was generated."""

    def talk(self) -> None:
        """Answer messages until the user quits.

        Raises:
            KeyboardInterrupt: with Ctrl-C.
            WorkerError: the request failed, and there is no terminal to show the error.
        """
        lines = self._lines_typed() if self._terminal else _piped()
        for line in lines:
            match line.strip():
                case "":
                    pass
                case "/exit":
                    return
                case "/reset":
                    self._conversation.forget()
                case "/help" if self._terminal:
                    aside(_HELP)
                case question:
                    self._ask(question)

    def _ask(self, question: str) -> None:
        turn: _Turn | None = self._turn(question)
        while turn is not None:
            try:
                self._answer(turn)
            except WorkerError as error:
                if not self._terminal:
                    raise
                notice(f"worker-orcd: {error.code}: {explained(error)}")
            turn = turn.next

    def _turn(self, question: str, latest: tuple[str, str] = ("", "")) -> _Turn:
        messages = self._conversation.asking(question, latest)
        job = self._client.chat(messages, job_id=f"cli-{secrets.token_hex(4)}", **self._parameters)
        return _Turn(question, job)

    def _answer(self, turn: _Turn) -> None:
        text = Text()
        typing = TypeAhead(lambda line: self._supersede(turn, line)) if self._terminal else nullcontext()
        try:
            with typing:
                ran = run(
                    self._client,
                    turn.job,
                    lambda event: None if self._as_json or turn.next else text.show(event),
                    begun=turn.begun,
                )
        except BaseException as error:
            if turn.next is not None and not isinstance(error, WorkerError):
                turn.next.job.__exit__()
            raise
        finally:
            text.end()
            self._conversation.keep(turn.question, turn.job.text if turn.said is None else turn.said)
        if self._as_json:
            write_json(_as_data(turn.job.job_id, turn.job.text, ran))
        self._conclude(ran, superseded=turn.next is not None)

    def _supersede(self, turn: _Turn, line: bytes) -> bool:
        """Start the answer to a line that was typed during another answer, which the worker then stops.

        Commands and the end of the input wait for the end of the answer. Returns whether a new answer was started.
        """
        question = line.decode(errors="replace").strip()
        if not line or question in _COMMANDS:
            self._typed.append(line)
            return False
        said = turn.job.text
        following = self._turn(question, (turn.question, said))
        try:
            following.job.__enter__()
        except WorkerError as error:  # Refused: the worker continues with the current answer.
            notice(f"worker-orcd: {error.code}: {explained(error)}")
            return False
        following.begun = True
        turn.said, turn.next = said, following
        return True

    def _lines_typed(self) -> Iterator[str]:
        """Lines that the user types, until Ctrl-D."""
        with suppress(ImportError):
            import readline  # noqa: F401, PLC0415  # from then on, lines can be edited and called back
        while True:
            try:
                line = self._typed.popleft() if self._typed else self._prompt()
            except EOFError:
                line = b""
            if not line:
                aside("")
                return
            yield _utf8(line)

    def _prompt(self) -> bytes:
        if self._as_json or not sys.stdout.isatty():
            ask(PROMPT)
            line = input()
        else:
            line = input(PROMPT)
        return (line + "\n").encode(errors="surrogateescape")

    def _conclude(self, ran: Ran, *, superseded: bool) -> None:
        data = ran.last.data
        if ran.last.name == "end":
            if data["stop_reason"] == "length" and self._terminal:
                aside("cut off at --max-tokens or at the end of the context")
        elif superseded and ran.reason == "superseded":
            aside(f"superseded: {receipt_line(ran.receipt)}")
        elif ran.ours:
            aside(receipt_line(ran.receipt) if ran.receipt else "stopped")
            if not self._terminal:
                raise KeyboardInterrupt
        elif ran.cancelled:
            where = f"by another client (reason {ran.reason})"
            self._failed("CANCELLED", f"the answer was cancelled {where}: {receipt_line(ran.receipt)}")
        else:
            self._failed(data["code"], f"{data['message']} (correlation id {self._client.correlation_id})")

    def _failed(self, code: str, message: str) -> None:
        if not self._terminal:
            fail(code, message)
        notice(f"worker-orcd: {code}: {message}")


def _as_data(job_id: str, text: str, ran: Ran) -> dict[str, Any]:
    """An answer and its outcome as JSON data, for scripts."""
    ended = ran.last.name == "end"
    error = {name: ran.last.data[name] for name in ("code", "message", "retriable")} if not ended else None
    return {
        "job_id": job_id,
        "content": text,
        "stop_reason": ran.last.data["stop_reason"] if ended else None,
        "tokens_out": ran.last.data["tokens_out"] if ended else None,
        "error": error,
        "receipt": ran.receipt,
    }


def _piped() -> Iterator[str]:
    """Lines of standard input, each as soon as it arrives."""
    while line := sys.stdin.buffer.readline():
        yield _utf8(line)


def _utf8(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeError:
        fail("INVALID_REQUEST", "a message is not valid UTF-8")
