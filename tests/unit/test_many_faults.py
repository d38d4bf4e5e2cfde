"""A body with very many faults is refused at once: while it is read, no cancel is."""

from collections.abc import Iterator
from typing import Any

import pytest

from worker_orcd.api.app import create_app  # noqa: F401  # Imports the bodies of all routes.
from worker_orcd.api.openai.chat_request import ChatRequest
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.request import Body, ExecuteRequest


def _all_bodies(base: type[Body] = Body) -> Iterator[type[Body]]:
    for body in base.__subclasses__():
        yield body
        yield from _all_bodies(body)


def _arrays(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas of arrays in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str) and schema["type"] in ("list", "tuple", "set", "frozenset"):
            yield schema
        schema = schema.values()
    elif not isinstance(schema, list | tuple):
        return
    for part in schema:
        yield from _arrays(part)


@pytest.mark.parametrize("body", dict.fromkeys(_all_bodies()), ids=lambda body: body.__name__)
def test_arrays_are_refused_at_their_first_fault(body: type[Body]) -> None:
    """Also those within others."""
    assert all(array.get("fail_fast") for array in _arrays(body.__pydantic_core_schema__))


def test_the_bodies_have_arrays() -> None:
    """The test above finds them."""
    assert sum(bool(list(_arrays(body.__pydantic_core_schema__))) for body in _all_bodies()) > 15


@pytest.mark.parametrize(
    ("body", "faulty", "named"),
    [
        (ExecuteRequest, b'"samplers": [%s]', "samplers.0"),
        (ExecuteRequest, b'"stop": [%s]', "stop.0"),
        (ExecuteRequest, b'"stop_token_ids": [[%s]]', "stop_token_ids.0"),
        (ChatRequest, b'"messages": [%s]', "messages.0"),
    ],
)
def test_the_first_fault_is_named(body: type[Body], faulty: bytes, named: str) -> None:
    """Of many in one array."""
    with pytest.raises(JobError, match=named):
        body.parse(b'{"job_id": "a", "prompt": "x", ' + faulty % b",".join([b"{}"] * 5000) + b"}")


def test_of_very_many_faulty_keys_the_first_unknown_field_is_named() -> None:
    """To list them all would take long. Those within a field are only counted."""
    keys = b",".join(b'"x%d": 1' % n for n in range(5000))
    with pytest.raises(JobError, match="unknown field 'x0'") as caught:
        ExecuteRequest.parse(b'{"job_id": "a", "prompt": "x", ' + keys + b"}")
    assert caught.value.param == "x0"
    with pytest.raises(JobError, match="more than 1000 faults"):
        ExecuteRequest.parse(b'{"job_id": "a", "prompt": "x", "logit_bias": {' + keys + b"}}")
