"""The catalogue as documentation. Run `python -m worker_orcd.narration.reference` to print it."""

import sys
from collections.abc import Sequence
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from worker_orcd.narration.action import ALWAYS
from worker_orcd.narration.catalogue import ACTIONS, FIELDS, Action
from worker_orcd.narration.narrator import ENVELOPE
from worker_orcd.narration.visibility import FOR_OPERATORS

_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def reference_markdown() -> str:
    """Render the catalogue as Markdown: all actions in one table, then the fields of each."""
    actions = [
        (f"`{action.name}`", sentence.level, "" if when == ALWAYS else when, sentence.template)
        for action in ACTIONS
        for when, sentence in action.sentences.items()
    ]
    lines = _table(("action", "level", "when", "sentence"), actions)
    lines += ["", "Every event carries:", ""]
    lines += _table(("field", "meaning"), [(f"`{name}`", meaning) for name, meaning in ENVELOPE.items()])
    lines += [
        "",
        "With keys, a tenant sees its own events and those of the worker as a whole. Of the latter it does not see "
        'the fields marked "operators", and where an action has a sentence for tenants, it reads that one. Operators '
        "hear everything.",
    ]
    for action in ACTIONS:
        reported = (action.__doc__ or "").strip().split("\n")[0]
        lines += ["", f"### `{action.name}`", "", reported, "", f"Target: `{action.acts_on}`.", ""]
        if action.for_tenants is not None:
            lines += [f"For tenants: {action.for_tenants}", ""]
        lines += _table(("field", "type", "meaning"), _fields(action))
    return "\n".join(lines) + "\n"


def _fields(action: type[Action]) -> Sequence[tuple[str, ...]]:
    hints = get_type_hints(action, include_extras=True)
    rows = []
    for name, optional in FIELDS[action].items():
        kind, meaning = get_args(hints[name])[:2]
        if name in FOR_OPERATORS[action.name]:
            meaning += " (operators)"
        rows.append((f"`{name}`", _type_name(kind) + (", optional" if optional else ""), meaning))
    return rows


def _type_name(kind: object) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    kinds = [k for k in get_args(kind) or (kind,) if k is not NoneType]
    return " or ".join(_TYPE_NAMES[k] for k in kinds)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
