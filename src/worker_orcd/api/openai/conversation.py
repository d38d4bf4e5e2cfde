"""Messages of a conversation, and the prompt made from them."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body

MAX_NESTED = 64
"""Maximum nesting depth of JSON in tools and in the arguments of calls."""


class ContentPart(Body):
    """A part of a message. Only text is supported."""

    model_config = ConfigDict(extra="ignore")

    type: str = "text"
    text: str | None = None


class PastFunction(Body):
    """The called function. `arguments` is the text of a JSON object."""

    model_config = ConfigDict(extra="ignore")

    name: str
    arguments: str | dict[str, Any] = "{}"


class PastCall(Body):
    """A tool call in an earlier message."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    type: Literal["function"] = "function"
    function: PastFunction


class ChatMessage(Body):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = Field(default=None, description="of an earlier message")
    tool_calls: list[PastCall] | None = Field(default=None, description="of an earlier message")
    tool_call_id: str | None = None
    name: str | None = None


def conversation(messages: list[ChatMessage], param: str, tools: Sequence[dict[str, Any]] = ()) -> str:
    """The prompt of a conversation, with the tools that may be called.

    Raises:
        JobError: `INVALID_REQUEST`: a part of a message is not text.
    """
    said = []
    for message in messages:
        content = message.content or ""
        if not isinstance(content, str):
            if any(part.text is None for part in content):
                raise invalid("only text is supported", param)
            content = "\n".join(part.text or "" for part in content)
        role = "system" if message.role == "developer" else message.role
        said.append({"role": role, "content": content, **_of_tools(message, param)})
    if tools or any(message.tool_calls or message.role == "tool" for message in messages):
        bounded(tools, "tools")
        return json.dumps({"messages": said, "tools": list(tools)}, ensure_ascii=False)
    return json.dumps(said, ensure_ascii=False)


def bounded(value: object, param: str) -> None:
    """Refuse JSON that is too deeply nested for a chat template.

    Raises:
        JobError: `INVALID_REQUEST` naming the field.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_NESTED:
            raise invalid(f"{param} is nested deeper than {MAX_NESTED} levels", param)
        level = [inner for one in level for inner in _within(one)]


def _within(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _of_tools(message: ChatMessage, param: str) -> dict[str, Any]:
    """The fields of a message besides role and content. Chat templates expect the arguments of calls as objects."""
    more: dict[str, Any] = {}
    if message.role == "assistant" and message.reasoning_content:
        more["reasoning_content"] = message.reasoning_content
    if message.role == "assistant" and message.tool_calls:
        more["tool_calls"] = [_past_call(call, param) for call in message.tool_calls]
    if message.role == "tool":
        given = {"tool_call_id": message.tool_call_id, "name": message.name}
        more |= {name: value for name, value in given.items() if value is not None}
    return more


def _past_call(call: PastCall, param: str) -> dict[str, Any]:
    arguments: object = call.function.arguments
    if isinstance(arguments, str):
        # Text that is not JSON stays unchanged.
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
    bounded(arguments, param)
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
