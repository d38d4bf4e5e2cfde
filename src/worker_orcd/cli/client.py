"""What the commands that talk to a running worker share: its client, its errors, and how a receipt reads."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Self
from urllib.parse import quote

import httpx2
import typer

from worker_orcd.cli.failure import fail

Json = dict[str, Any]
DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option("--url", envvar="WORKER_ORCD_URL", help="where the worker listens")]
"""The option `--url` of every client command."""

CANCEL_PATIENCE_SEC = 7.0
"""How long to wait for a cancelled job's record to end: a little more than the worker's own five seconds."""

_ANSWER_SEC = 10.0
_SILENCE_SEC = 60.0
"""The longest silence of a stream; the worker sends a comment every 15 s."""
_POLL_SEC = 0.01


class ClientError(Exception):
    """It did not work out. `code` is an error code of the contract, or `UNREACHABLE`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream: its number, its name, its data."""

    id: int
    name: str
    data: Json

    @property
    def terminal(self) -> bool:
        """Whether it is the last one."""
        return self.name in ("end", "error")


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and the JSON that came with it."""

    status: int
    body: Json


class WorkerClient:
    """A worker, as a client sees it. May be used from several threads. Every method raises `ClientError`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.correlation_id = uuid.uuid4().hex
        with self._clear_errors():
            self._http = httpx2.Client(
                base_url=url,
                headers={"X-Correlation-Id": self.correlation_id} | _authorization(),
                timeout=_ANSWER_SEC,
                trust_env=False,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> Json:
        """`GET /health`, however the worker is."""
        return self._ask("GET", "/health", allowed=(200, 503)).body

    def jobs(self) -> list[Json]:
        """`GET /jobs`: the records of live jobs, oldest first, then of ended ones, latest first."""
        records: list[Json] = self._ask("GET", "/jobs").body["jobs"]
        return records

    def record(self, job_id: str) -> Json | None:
        """`GET /jobs/{job_id}`, or None when no such job is known."""
        answer = self._ask("GET", f"/jobs/{_in_path(job_id)}", allowed=(200, 404))
        return answer.body if answer.status == 200 else None

    def ended_record(self, job_id: str, within_sec: float = CANCEL_PATIENCE_SEC) -> Json | None:
        """A job's record once it has ended, or as it is when that takes too long."""
        deadline = time.monotonic() + within_sec
        while True:
            record = self.record(job_id)
            if record is None or record["ended_ms"] is not None or time.monotonic() > deadline:
                return record
            time.sleep(_POLL_SEC)

    def cancel(self, job_id: str) -> Answer:
        """`POST /cancel`."""
        return self._ask("POST", "/cancel", body={"job_id": job_id}, allowed=(202,))

    @contextmanager
    def execute(self, body: Json) -> Iterator[Iterator[Event]]:
        """`POST /execute`: once it is accepted, the job's events as they come. Leaving early cancels the job."""
        with ExitStack() as open_stream:
            with self._clear_errors():
                timeout = httpx2.Timeout(_ANSWER_SEC, read=_SILENCE_SEC)
                source = open_stream.enter_context(
                    self._http.sse("/execute", method="POST", json=body, timeout=timeout)
                )
                if source.response.status_code != 200:
                    source.response.read()
                    raise self._refusal(source.response)
            yield self._events(source)

    def _events(self, source: httpx2.EventSource) -> Iterator[Event]:
        with self._clear_errors():
            for sse in source:
                yield Event(int(sse.id), sse.event, json.loads(sse.data))

    def _ask(
        self, method: str, path: str, *, body: Json | None = None, allowed: tuple[int, ...] = (200,)
    ) -> Answer:
        with self._clear_errors():
            response = self._http.request(method, path, json=body)
            if response.status_code not in allowed:
                raise self._refusal(response)
            return Answer(response.status_code, response.json())

    def _refusal(self, response: httpx2.Response) -> ClientError:
        error = response.json()["error"]
        correlation_id = response.headers.get("X-Correlation-Id", self.correlation_id)
        return ClientError(error["code"], f"{error['message']} (correlation id {correlation_id})")

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            hint = "is it running? `worker-orcd serve` starts one; --url or WORKER_ORCD_URL says where it listens"
            raise ClientError("UNREACHABLE", f"no worker at {self.url}: {error}; {hint}") from error
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise ClientError(
                "UNREACHABLE", f"lost the worker at {self.url}: {what} (correlation id {self.correlation_id})"
            ) from error
        except (json.JSONDecodeError, httpx2.SSEError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ClientError(
                "UNREACHABLE", f"what answers at {self.url} is not a worker: {error!r}"
            ) from error


@contextmanager
def connected(url: str) -> Iterator[WorkerClient]:
    """A client for one command; whatever goes wrong with the worker is told in one line, and exits 1."""
    try:
        with WorkerClient(url) as client:
            yield client
    except ClientError as error:
        fail(error.code, str(error))


def _authorization() -> dict[str, str]:
    """The key in `WORKER_ORCD_API_KEY`, if there is one: on a command line everybody on the machine could read it."""
    key = os.environ.get("WORKER_ORCD_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _in_path(job_id: str) -> str:
    """A job id as one step of a path, `..` included, which an HTTP client would otherwise walk."""
    return quote(job_id, safe="").replace(".", "%2E")


def receipt_line(record: Json) -> str:
    """How a stop went, in one line, from the record of a job that has one."""
    receipt = record["receipt"]
    freed = "NOT CONFIRMED" if receipt["freed_ms"] is None else f"after {receipt['freed_ms']:.1f} ms"
    after = "unknown" if receipt["kv_cells_after"] is None else receipt["kv_cells_after"]
    return (
        f"stopped after {receipt['stopped_ms']:.1f} ms, freed {freed}, told after {receipt['told_ms']:.1f} ms; "
        f"KV cells {receipt['kv_cells_before']} → {after} "
        f"({receipt['phase']}, {receipt['prompt_tokens']} prompt tokens read, {receipt['tokens_out']} tokens out)"
    )
