"""The log events of docs/reference.md: all actions in one table, then the fields of each."""

from collections.abc import Sequence
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from tools.docs.markdown import code, table
from worker_orcd.narration.action import ALWAYS
from worker_orcd.narration.catalogue import ACTIONS, FIELDS, Action
from worker_orcd.narration.narrator import ENVELOPE
from worker_orcd.narration.visibility import FOR_OPERATORS

_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def log_events_section() -> str:
    """Made from the catalogue."""
    actions = [
        (code(action.name), sentence.level, "" if when == ALWAYS else when, sentence.template)
        for action in ACTIONS
        for when, sentence in action.sentences.items()
    ]
    parts = [
        "## Narration",
        "Structured log events on standard error: JSON lines when piped, coloured and readable on a terminal "
        "(`--log-format`). They never contain the prompt or the output, only their length and the prompt's "
        "SHA-256.",
        table(("action", "level", "when", "sentence"), actions),
        "Every event carries:",
        table(("field", "meaning"), [(code(name), meaning) for name, meaning in ENVELOPE.items()]),
        "With keys, a tenant sees its own events and those of the worker as a whole. The latter lack the fields "
        'marked "operators", and have the sentence for tenants if the action has one. Operators see everything.',
    ]
    for action in ACTIONS:
        meaning = (action.__doc__ or "").strip().split("\n")[0]
        parts += [f"### {code(action.name)}", meaning, f"Target: {code(action.acts_on)}."]
        if action.for_tenants is not None:
            parts.append(f"For tenants: {action.for_tenants}")
        parts.append(table(("field", "type", "meaning"), _fields(action)))
    return "\n\n".join(parts)


def _fields(action: type[Action]) -> Sequence[tuple[str, ...]]:
    hints = get_type_hints(action, include_extras=True)
    rows = []
    for name, optional in FIELDS[action].items():
        kind, meaning = get_args(hints[name])[:2]
        if name in FOR_OPERATORS[action.name]:
            meaning += " (operators)"
        rows.append((code(name), _type_name(kind) + (", optional" if optional else ""), meaning))
    return rows


def _type_name(kind: object) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    kinds = [k for k in get_args(kind) or (kind,) if k is not NoneType]
    return " or ".join(_TYPE_NAMES[k] for k in kinds)
