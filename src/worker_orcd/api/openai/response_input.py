"""The input of a response: items as clients send them, as the API returns them, and as messages for the model."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from worker_orcd.api.openai.conversation import ChatMessage, ContentPart
from worker_orcd.api.openai.input_items import Item
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body


class InputMessage(Body):
    """A message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class InputCall(Body):
    """A tool call in an earlier output."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class InputCallOutput(Body):
    """The result of a tool call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]


class InputReasoning(Body):
    """Reasoning of an earlier output."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]
    content: list[ContentPart] | None = None


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return str(kind)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind),
]


def item_of(given: InputItem) -> Item:
    """An input item with a new id, as the API returns it.

    Raises:
        JobError: `INVALID_REQUEST`: a part of it is not text.
    """
    match given:
        case InputMessage():
            output = given.role == "assistant"
            more: Item = {"annotations": [], "logprobs": []} if output else {}
            kind = "output_text" if output else "input_text"
            content = [{"type": kind, "text": text, **more} for text in _texts(given.content)]
            return _item("msg", "message", role=given.role, status="completed", content=content)
        case InputCall():
            named = {"call_id": given.call_id, "name": given.name, "arguments": given.arguments}
            return _item("fc", "function_call", **named, status=given.status or "completed")
        case InputCallOutput(output=str(output)):
            return _item("fco", given.type, call_id=given.call_id, output=output, status="completed")
        case InputCallOutput():
            parts = [{"type": "input_text", "text": text} for text in _texts(given.output)]
            return _item("fco", given.type, call_id=given.call_id, output=parts, status="completed")
        case InputReasoning():
            content = [{"type": "reasoning_text", "text": text} for text in _texts(given.content or [])]
            return _item("rs", "reasoning", summary=[], content=content)


def messages_of(items: Sequence[Item]) -> list[ChatMessage]:
    """Convert items to messages for the model.

    Reasoning, text and calls that follow each other become one message. An incomplete call is left out, unless the
    client sends its result.

    Raises:
        JobError: `INVALID_REQUEST`: the result of a call is there without the call.
    """
    outputs = {item["call_id"] for item in items if item["type"] == "function_call_output"}
    names: dict[str, str] = {}
    messages: list[Item] = []
    for item in items:
        last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        match item["type"]:
            case "reasoning":
                text = "\n".join(part["text"] for part in item["content"])
                messages.append({"role": "assistant", "reasoning_content": text})
            case "message" if item["role"] == "assistant" and last is not None and _only_reasons(last):
                last["content"] = item["content"]
            case "message":
                messages.append({"role": item["role"], "content": item["content"]})
            case "function_call" if item["status"] == "completed" or item["call_id"] in outputs:
                names[item["call_id"]] = item["name"]
                if last is None:
                    messages.append(last := {"role": "assistant"})
                function = {"name": item["name"], "arguments": item["arguments"]}
                last.setdefault("tool_calls", []).append({"id": item["call_id"], "function": function})
            case "function_call_output":
                name = names.get(item["call_id"])
                if name is None:
                    raise invalid(
                        f"No tool call found for function call output {item['call_id'][:64]!r}.", "input"
                    )
                said = {"content": item["output"], "tool_call_id": item["call_id"], "name": name}
                messages.append({"role": "tool", **said})
    return [ChatMessage.model_validate(message) for message in messages]


def _only_reasons(message: Item) -> bool:
    return "content" not in message and "tool_calls" not in message


def _item(prefix: str, kind: str, **more: Any) -> Item:
    return {"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind, **more}


def _texts(content: str | Sequence[ContentPart]) -> list[str]:
    if isinstance(content, str):
        return [content]
    if any(part.text is None for part in content):
        raise invalid("only text is supported", "input")
    return [part.text or "" for part in content]
