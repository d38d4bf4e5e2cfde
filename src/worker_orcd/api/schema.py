"""Parts of the OpenAPI description that FastAPI cannot generate, because bodies are read whatever their Content-Type.

docs/contributing.md explains why FastAPI does not read them.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "retriable"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "retriable": {"type": "boolean"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


class _Body(dict[str, Any]):
    """The `requestBody` of an operation, described when it is asked for: a start of the worker does not wait for it."""

    def __init__(self, described: Callable[[], dict[str, Any]]) -> None:
        super().__init__(requestBody=None)
        self._described = described

    def __getitem__(self, key: str) -> Any:
        """Describe it."""
        return self._described() if key == "requestBody" else super().__getitem__(key)

    def items(self) -> Any:
        """As FastAPI reads it."""
        return {key: self[key] for key in self}.items()


def body(model: type[BaseModel], example: dict[str, object], **bounds: dict[str, int]) -> dict[str, Any]:
    """The `requestBody` of an operation. `bounds`: by field, this worker's bounds as JSON Schema keywords."""

    def described() -> dict[str, Any]:
        schema = _whole(model.model_json_schema())
        for name, bound in bounds.items():
            described = schema["properties"][name]
            # A field that may be null has alternatives in its description.
            described.get("anyOf", [described])[0].update(bound)
        return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}

    return _Body(described)


def bound(name: str, value: int | None) -> dict[str, int]:
    """A bound as a JSON Schema keyword, if the worker has one."""
    return {} if value is None else {name: value}


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its references resolved, because an operation cannot contain definitions."""
    definitions = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        match part:
            case {"$ref": str(reference)}:
                return whole(definitions[reference.rpartition("/")[2]])
            case dict():
                return {name: whole(value) for name, value in part.items()}
            case list():
                return [whole(one) for one in part]
        return part

    described: dict[str, Any] = whole(schema)
    return described


def errors(*statuses: int) -> Responses:
    """The error responses of an operation."""
    described = {
        400: "`INVALID_REQUEST`, with the faulty field in `param`",
        401: "`UNAUTHORIZED`: the worker has keys, and the request has none of them",
        403: "`UNAUTHORIZED`: the key is a tenant's, and this endpoint is for operators",
        404: "`JOB_NOT_FOUND`",
        409: "`JOB_ID_IN_USE`",
        413: "`INVALID_REQUEST`: the body is over 1 MiB",
        429: "`QUEUE_FULL`, with `Retry-After`",
        503: "`DRAINING` with `Retry-After`, or not healthy",
    }
    content = {"application/json": {"schema": _ERROR}}
    answers: Responses = {
        status: {"description": described[status], "content": content} for status in statuses
    }
    # This also keeps FastAPI from describing its own 422, which never occurs.
    answers["default"] = {"description": "Any other error, in the same shape", "content": content}
    return answers


def answer(status: int, description: str, content_type: str, **content: object) -> Responses:
    """Another response of an operation; `content` has `schema`, `itemSchema` or `example`."""
    return {status: {"description": description, "content": {content_type: content}}}


def nothing(status: int, description: str) -> Responses:
    """A response without a body."""
    return {status: {"description": description}}


def stream(status: int, description: str) -> Responses:
    """A response of a job's server-sent events, described like FastAPI's own ones."""
    event = {
        "type": "object",
        "required": ["event", "id", "data"],
        "properties": {
            "event": {"enum": ["started", "progress", "token", "end", "error"]},
            "id": {"type": "string", "pattern": "^[0-9a-f]{20}\\.[0-9]+$"},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"type": "object"},
            },
        },
    }
    return answer(status, description, "text/event-stream", itemSchema=event)


def query(name: str, description: str, most: int) -> dict[str, Any]:
    """An optional query parameter: a whole number up to `most`."""
    schema = {"type": "integer", "minimum": 0, "maximum": most}
    return {"parameters": [{"name": name, "in": "query", "description": description, "schema": schema}]}


POSITION = "^([0-9a-f]{20}\\.[0-9]{1,18})?$"
"""An event's id, or empty."""


def header(name: str, description: str, pattern: str | None = POSITION) -> dict[str, Any]:
    """An optional header, by default an event's id. An empty header counts as left out. `pattern` None: any value."""
    schema = {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
    return {"parameters": [{"name": name, "in": "header", "description": description, "schema": schema}]}
