"""Which log events tenants see: their own, and of the worker's neither paths nor other tenants' load (G9)."""

import asyncio
import contextlib
import dataclasses
import io
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from worker_orcd import narration
from worker_orcd.narration import context
from worker_orcd.narration.action import OPERATORS, WorkerAction
from worker_orcd.narration.broadcast import Broadcast, Listener
from worker_orcd.narration.catalogue import ACTIONS
from worker_orcd.narration.visibility import FOR_OPERATORS

SECRET = "/srv/secret"
SECRET_NUMBER = 987_654


class EventFields:
    """A narrator with two tenants and an operator who listen."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.narrator = narration.Narrator.configure("w", log_format="json", stream=self.log)
        broadcast = self.narrator.broadcast
        self.anna, self.berta = listener(broadcast, "anna"), listener(broadcast, "berta")
        self.operator = listener(broadcast, "olga", operator=True)


def listener(broadcast: Broadcast, owner: str, *, operator: bool = False) -> Listener:
    """Add a listener."""
    joined = broadcast.join(owner, operator=operator)
    assert joined is not None
    return joined


def received(by: Listener) -> list[narration.EventFields]:
    """Events that are queued for a listener now."""

    async def listen() -> list[narration.EventFields]:
        async for batch in by.listen(0.001):
            return [one.event for one in batch]
        return []

    return asyncio.run(listen())


@contextlib.contextmanager
def request_of(owner: str) -> Iterator[None]:
    """As if this tenant's request were being served."""
    token = context.owner.set(owner)
    try:
        yield
    finally:
        context.owner.reset(token)


def example(action: type[Any]) -> Any:
    """One of these, with the secret wherever a field is for operators."""
    values: dict[str, object] = {}
    hints = typing.get_type_hints(action, include_extras=True)
    for field in dataclasses.fields(action):
        kind, *_ = typing.get_args(hints[field.name])
        secret = field.name in FOR_OPERATORS[action.name]
        kinds = typing.get_args(kind) or (kind,)
        if typing.get_origin(kind) is typing.Literal:
            values[field.name] = kinds[0]
        elif bool in kinds:
            values[field.name] = False
        elif int in kinds or float in kinds:
            values[field.name] = SECRET_NUMBER if secret else 7
        else:
            values[field.name] = SECRET if secret else "plain"
    if action is narration.Error:
        values |= {"job_id": None, "http_status": None}
    return action(**values)


@pytest.mark.parametrize(
    "action", [*filter(lambda one: issubclass(one, WorkerAction), ACTIONS), narration.Error]
)
@pytest.mark.parametrize("whose", [None, "berta"])
def test_no_tenant_sees_what_is_for_operators(action: type[Any], whose: str | None) -> None:
    """Of an event about the worker, whoever's request caused it; the operator and the log have all of it."""
    reported = EventFields()
    with request_of(whose) if whose else contextlib.nullcontext():
        reported.narrator.emit(example(action))
    secrets = bool(FOR_OPERATORS[action.name])
    for tenant in (reported.anna, reported.berta):
        (event,) = received(tenant)
        assert event["action"] == action.name
        assert SECRET not in json.dumps(event)
        assert str(SECRET_NUMBER) not in json.dumps(event)
        assert not FOR_OPERATORS[action.name] & event.keys()
        assert event["human"]
    for everything in (json.dumps(received(reported.operator)), reported.log.getvalue()):
        assert (SECRET in everything or str(SECRET_NUMBER) in everything) is secrets


def test_no_sentence_for_tenants_has_a_field_for_operators() -> None:
    """And each action about the worker has one, if any of its sentences has such a field."""
    for action in ACTIONS:
        hidden = FOR_OPERATORS[action.name]
        if action.for_tenants is not None:
            assert not hidden & set(re.findall(r"{(\w+)}", action.for_tenants)), action
        elif issubclass(action, WorkerAction):
            for sentence in action.sentences.values():
                assert not hidden & set(re.findall(r"{(\w+)}", sentence.template)), action


def test_paths_and_counts_of_jobs_are_marked_for_operators() -> None:
    """In each event that more than one tenant sees."""
    marked = {
        name for action in ACTIONS if issubclass(action, WorkerAction) for name in FOR_OPERATORS[action.name]
    }
    assert marked >= {"path", "model", "jobs_running", "jobs_queued", "why", "api_keys", "open_key_files"}
    for action in ACTIONS:
        if issubclass(action, WorkerAction):
            names = {field.name for field in dataclasses.fields(action)}
            assert (
                names & {"path", "model", "jobs_running", "jobs_queued", "why"} <= FOR_OPERATORS[action.name]
            )
    assert OPERATORS


def test_a_tenant_sees_all_of_its_own_refusals() -> None:
    """Their message is the client's own; only the operator sees them, too."""
    reported = EventFields()
    with request_of("anna"):
        reported.narrator.emit(
            narration.Error(code="INVALID_REQUEST", message="no such field", http_status=400)
        )
    (event,) = received(reported.anna)
    assert event["message"] == "no such field"
    assert "no such field" in str(event["human"])
    assert received(reported.berta) == []
    assert received(reported.operator) == [event]


def test_an_event_of_a_job_that_belongs_to_nobody_is_for_operators() -> None:
    """A tenant sees no event of a job that is not known to be its own."""
    reported = EventFields()
    reported.narrator.emit(narration.Error(code="INTERNAL", message="m", job_id="job-7"))
    assert received(reported.anna) == []
    assert len(received(reported.operator)) == 1
