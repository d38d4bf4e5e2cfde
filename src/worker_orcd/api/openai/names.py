"""Names of a request's job, and this API's names of a job's fields."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.jobs.request import Body, JobId


@contextmanager
def error_style(request: dict[str, str]) -> Iterator[None]:
    """In this block, errors use the request's name of the faulty field."""
    try:
        yield
    except JobError as error:
        error.param = request.get(error.param or "", error.param)
        raise


def fresh_name(prefix: str, offered: str | None) -> str:
    """The id of a request's job: the client's (`X-Job-Id`), or a new one.

    Raises:
        JobError: `INVALID_REQUEST`: the client's id is not valid.
    """
    if offered is None:
        return f"{prefix}{secrets.token_hex(12)}"
    return id_in_header("X-Job-Id", offered)


def id_in_header(header: str, value: str) -> str:
    """The id in a header.

    Raises:
        JobError: `INVALID_REQUEST`: the id is not valid.
    """
    try:
        return _Named.parse(json.dumps({"job_id": value}).encode()).job_id
    except JobError as error:
        raise invalid(f"{header}: {error.message}", header) from None


class _Named(Body):
    job_id: JobId
