"""What a request calls its job and its fields."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.jobs.request import Body, JobId


@contextmanager
def error_style(request: dict[str, str]) -> Iterator[None]:
    """Name the field at fault as this request calls it."""
    try:
        yield
    except JobError as error:
        error.param = request.get(error.param or "", error.param)
        raise


def fresh_name(prefix: str, offered: str | None) -> str:
    """The id of a request's job: the client's own (`X-Job-Id`), or a new one.

    Raises:
        JobError: `INVALID_REQUEST`, the offered one is none.
    """
    if offered is None:
        return f"{prefix}{secrets.token_hex(12)}"
    return id_in_header("X-Job-Id", offered)


def id_in_header(header: str, value: str) -> str:
    """The id in a header.

    Raises:
        JobError: `INVALID_REQUEST`, it is none.
    """
    try:
        return _Named.parse(json.dumps({"job_id": value}).encode()).job_id
    except JobError as error:
        raise invalid(f"{header}: {error.message}", header) from None


class _Named(Body):
    job_id: JobId
