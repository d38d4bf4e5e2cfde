"""Tools for models whose chat template does not support them: described in a system message, in Hermes' format."""

import json
from collections.abc import Iterable
from typing import Any

_BEFORE = """You may call functions to answer the user. The functions, in <tools></tools> tags:
<tools>
"""
_AFTER = """
</tools>
To call a function, write a JSON object with its name and arguments in <tool_call></tool_call> tags, and nothing else:
<tool_call>
{"name": <function-name>, "arguments": <arguments-object>}
</tool_call>"""


def with_tools(given: Any, *, takes_tools: bool) -> dict[str, Any]:
    """The variables of a chat template for a conversation: a list of messages, or an object with `messages` and
    `tools`."""
    if isinstance(given, list):
        return {"messages": given}
    if takes_tools:
        return {name: value for name, value in given.items() if value}
    return {"messages": without_tools(given["messages"], given["tools"])}


def without_tools(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert a conversation with tools to one that any chat template can render.

    Args:
        messages: OpenAI's messages; the arguments of calls are objects.
        tools: the tools that may be called.
    """
    plain = _joined([_plain(message) for message in messages])
    if "end" in messages[-1]:
        plain[-1]["end"] = messages[-1]["end"]
    if not tools:
        return plain
    described = _BEFORE + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _AFTER
    if plain and plain[0]["role"] == "system":
        first, *rest = plain
        return [{"role": "system", "content": f"{first['content']}\n\n{described}"}, *rest]
    return [{"role": "system", "content": described}, *plain]


_RESULT = "<tool_response>"
_PROBE_NAME = "probe_7c1e0f52a94b"
PROBE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": _PROBE_NAME,
                "description": "x",
                "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
            },
        }
    ],
    "add_generation_prompt": True,
}
"""A conversation for testing whether a chat template supports tools."""


def shows_tools(rendered: Iterable[Any]) -> bool:
    """Whether these pieces contain the tool of `PROBE`."""
    return any(_PROBE_NAME in piece.text for piece in rendered)


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join consecutive tool results, and a user message after them, into one message, because many chat templates
    require alternating roles."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if message["role"] == last.get("role") == "user" and _RESULT in last["content"]:
            joined[-1] = {"role": "user", "content": f"{last['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"{_RESULT}\n{content}\n</tool_response>"}
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return {"role": message["role"], "content": "\n".join([content, *calls] if content else calls)}
