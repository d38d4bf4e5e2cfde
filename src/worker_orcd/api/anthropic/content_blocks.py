"""Content blocks of Anthropic's messages, and their conversion to messages for the model."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from worker_orcd.api.openai.conversation import ChatMessage, ContentPart, PastCall, PastFunction
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body

BLOCKS = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})
"""The supported types of content blocks."""


class ToolUse(Body):
    """A tool call in an earlier message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]


class ToolResult(Body):
    """The result of a tool call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ContentPart] | None = None


class Thinking(Body):
    """Reasoning of an earlier message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["thinking"]
    thinking: str


class RedactedThinking(Body):
    """Encrypted reasoning of another service, which is ignored."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["redacted_thinking"]


def _kind(block: Any) -> str:
    kind = block.get("type", "text") if isinstance(block, dict) else getattr(block, "type", "text")
    return str(kind)


Block = Annotated[
    Annotated[ContentPart, Tag("text")]
    | Annotated[ToolUse, Tag("tool_use")]
    | Annotated[ToolResult, Tag("tool_result")]
    | Annotated[Thinking, Tag("thinking")]
    | Annotated[RedactedThinking, Tag("redacted_thinking")],
    Discriminator(_kind),
]


class InputMessage(Body):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant"]
    content: str | list[Block]


def messages_of(given: Sequence[InputMessage]) -> list[ChatMessage]:
    """Convert to messages for the model, in which each tool result is a message.

    Raises:
        JobError: `INVALID_REQUEST`: a result without its call, or a block that does not fit its message's role.
    """
    names: dict[str, str] = {}
    messages: list[ChatMessage] = []
    for message in given:
        if isinstance(message.content, str):
            messages.append(ChatMessage(role=message.role, content=message.content))
        elif message.role == "assistant":
            messages.append(_answer(message.content, names))
        else:
            messages += _of_user(message.content, names)
    return messages


def _answer(blocks: Sequence[Block], names: dict[str, str]) -> ChatMessage:
    texts: list[ContentPart] = []
    thoughts: list[str] = []
    calls: list[PastCall] = []
    for block in blocks:
        match block:
            case ContentPart():
                texts.append(block)
            case Thinking():
                thoughts.append(block.thinking)
            case ToolUse():
                names[block.id] = block.name
                function = PastFunction(name=block.name, arguments=block.input)
                calls.append(PastCall(id=block.id, function=function))
            case ToolResult():
                raise invalid("a message of the assistant cannot have tool_result", "messages")
    reasoning = "\n".join(thoughts) or None
    return ChatMessage(role="assistant", content=texts, reasoning_content=reasoning, tool_calls=calls or None)


def _of_user(blocks: Sequence[Block], names: dict[str, str]) -> Iterator[ChatMessage]:
    texts: list[ContentPart] = []
    for block in blocks:
        match block:
            case ContentPart():
                texts.append(block)
            case ToolResult():
                if block.tool_use_id not in names:
                    what = f"unexpected tool_use_id in tool_result blocks: {block.tool_use_id[:64]!r}"
                    raise invalid(f"{what}; there is no tool_use before it", "messages")
                if texts:
                    yield ChatMessage(role="user", content=texts)
                    texts = []
                name = names[block.tool_use_id]
                yield ChatMessage(
                    role="tool", content=block.content, tool_call_id=block.tool_use_id, name=name
                )
            case _:
                raise invalid(f"a message of the user cannot have {block.type}", "messages")
    if texts or not blocks:
        yield ChatMessage(role="user", content=texts)
