"""The requests of docs/reference.md: fields, types, bounds and defaults."""

import json
from typing import Any

from tools.docs.markdown import code, table
from worker_orcd.jobs.request import Body, CancelRequest, ExecuteRequest


def requests_section() -> str:
    """Fields of `/execute` and `/cancel`."""
    parts = [
        "## Requests",
        "Bodies are parsed as JSON, whatever `Content-Type` says. Types are not coerced, and unknown fields are "
        "refused by name.",
    ]
    for path, model in (("/execute", ExecuteRequest), ("/cancel", CancelRequest)):
        parts += [
            f"### `POST {path}`",
            table(("field", "type and bounds", "default", "meaning"), _fields(model)),
        ]
    parts.append(
        "Prompt and output together must fit the context of one job, `context_length` in `GET /health`; "
        "`--max-tokens-out` and `--max-prompt-chars` may limit them further. On `/v1`, where clients often send large "
        "defaults, a `max_tokens` that does not fit is reduced to what does."
    )
    parts.append(
        "The response of `POST /cancel` is always `202` with " + code(json.dumps(_cancel_answer())) + "."
    )
    return "\n\n".join(parts)


def _cancel_answer() -> dict[str, str]:
    return CancelRequest(job_id="test-123").answer()


def _fields(model: type[Body]) -> list[tuple[str, ...]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows: list[tuple[str, ...]] = []
    for name, field in sorted(schema["properties"].items(), key=lambda named: named[0] not in required):
        default = "required" if name in required else _default(field.get("default"))
        rows.append((code(name), _rule(field), default, field.get("description", "")))
    return rows


def _default(value: object) -> str:
    return "none" if value is None else code(json.dumps(value))


def _rule(field: dict[str, Any]) -> str:
    """What a JSON schema asks of a value, in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        return " or ".join(code(json.dumps(value)) for value in kind["enum"])
    match kind["type"]:
        case "array":
            return f"at most {kind['maxItems']} " + _items(kind["items"])
        case "object":
            value, most = kind["additionalProperties"], kind.get("maxProperties")
            return f"an object of at most {most}: token id to {_rule(value)}" if most else "a JSON Schema"
        case "string":
            return "text" + _range(kind.get("minLength"), kind.get("maxLength"), " characters")
        case "integer" | "number":
            low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
            what = "a whole number" if kind["type"] == "integer" else "a number"
            if above is not None:
                return f"{what} above {_number(above)} and at most {_number(kind['maximum'])}"
            return what + _range(low, kind.get("maximum"), "")
        case _:
            return "`true` or `false`"


def _items(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return "of " + ", ".join(map(code, kind["enum"]))
    if kind["type"] == "integer":
        return "token ids"
    return f"texts of at most {kind['maxLength']} characters"


def _range(low: float | None, high: float | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f", {_number(low)}{unit} or more".replace("1 characters", "1 character")
    return f", {_number(low)} to {_number(high)}{unit}"


def _number(value: float | None) -> str:
    for power in (31, 64):
        if value == 2**power - 1:
            return f"2^{power} - 1"
    return str(int(value)) if value is not None and float(value).is_integer() else str(value)
