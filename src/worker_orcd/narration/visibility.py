"""What tenants may see: their own events, and events about the worker without the fields for operators."""

from collections.abc import Mapping
from typing import get_type_hints

from worker_orcd.narration.action import OPERATORS, EventFields, WorkerAction
from worker_orcd.narration.catalogue import ACTIONS, Action, Error
from worker_orcd.narration.text import fill

_BY_NAME: Mapping[str, type[Action]] = {action.name: action for action in ACTIONS}
FOR_OPERATORS: Mapping[str, frozenset[str]] = {
    action.name: frozenset(
        name
        for name, hint in get_type_hints(action, include_extras=True).items()
        if OPERATORS in getattr(hint, "__metadata__", ())
    )
    for action in ACTIONS
}
"""By action: the fields that only operators see."""


def for_tenants(event: EventFields) -> EventFields | None:
    """The part of an event without a tenant that every tenant may see; None if the event is not about the worker."""
    if not concerns_worker(event):
        return None
    action = _BY_NAME[str(event["action"])]
    seen = {name: value for name, value in event.items() if name not in FOR_OPERATORS[action.name]}
    if action.for_tenants is not None:
        seen["human"] = fill(action.for_tenants, seen)
    return seen


def concerns_worker(event: EventFields) -> bool:
    """Whether an event is about the worker as a whole. Such an event belongs to no tenant, whatever caused it."""
    action = _BY_NAME.get(str(event.get("action")))
    if action is Error:
        return "job_id" not in event and "http_status" not in event
    return action is not None and issubclass(action, WorkerAction)
