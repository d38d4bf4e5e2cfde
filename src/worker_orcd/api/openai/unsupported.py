"""Fields of OpenAI's API that would change the output and are not supported. They are refused by name.

Each field is listed with its values that have no effect, in addition to null.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from worker_orcd.jobs.errors import invalid

Fields = dict[str, tuple[object, ...]]

_NOTHING: tuple[object, ...] = (False, [], {}, 0, 0.0, "")
_ONE: tuple[object, ...] = (1, 1.0)

OPENAI: Fields = {}
VLLM: Fields = {
    "beam_search": _NOTHING,
    "use_beam_search": _NOTHING,
    "prompt_logprobs": (False,),
    "allowed_token_ids": (),
    "bad_words": _NOTHING,
    "logits_processors": _NOTHING,
    "include_stop_str_in_output": _NOTHING,
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "length_penalty": _ONE,
    "chat_template": (),
    "chat_template_kwargs": _NOTHING,
    "documents": _NOTHING,
    "prompt_embeds": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
}
LLAMA_SERVER: Fields = {
    "repeat_last_n": (64,),
    "n_probs": _NOTHING,
    "n_keep": _NOTHING,
    "min_keep": _NOTHING,
    "typical_p": _ONE,
    "tfs_z": _ONE,
    "top_n_sigma": (-1, -1.0),
    "mirostat": _NOTHING,
    "dynatemp_range": _NOTHING,
    "dry_multiplier": _NOTHING,
    "xtc_probability": _NOTHING,
    "lora": _NOTHING,
    "n_cmpl": _ONE,
    "adaptive_target": (-1, -1.0),
    "reasoning_budget": (-1,),
    "parse_tool_calls": (True,),
    "return_tokens": (False,),
}
OLLAMA: Fields = {"format": _NOTHING}
ANY: Fields = OPENAI | VLLM | LLAMA_SERVER | OLLAMA
COMPLETION: Fields = ANY | {"best_of": (1,)}
LLAMA_SERVER_REQUEST: Fields = COMPLETION | {"n": _ONE, "spm_infill": _NOTHING}
EMBEDDINGS: Fields = {
    "messages": ([],),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (True,),
    "normalize": (True,),
    "embd_normalize": (2,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}
CHAT: Fields = ANY | {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
}
RESPONSE: Fields = ANY | {
    "response_format": ({"type": "text"},),
    "json_schema": (),
    "grammar": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "structured_outputs": _NOTHING,
    "conversation": (),
    "prompt": (),
    "logprobs": (False,),
    "truncation": ("disabled",),
    "stop": _NOTHING,
    "max_tokens": (),
    "max_completion_tokens": (),
    "n": _ONE,
}

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "reasoning_text", "summary_text"})
_MESSAGES = frozenset({"message"})
RESPONSE_ITEMS = _MESSAGES | {"function_call", "function_call_output", "reasoning"}
"""The kinds of items that a response's input may have."""
_IN_MESSAGES: Fields = {"function_call": (), "audio": (), "prefix": (False,)}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def object_in(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, before its types are checked. None if the body is something else, which is refused
    later."""
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def refuse_unsupported(given: dict[str, Any], unsupported: Fields) -> None:
    """Refuse a body with unsupported fields.

    Args:
        given: the body as received.
        unsupported: the unsupported fields.

    Raises:
        JobError: `INVALID_REQUEST` naming the field.
    """
    for name in _asked(given, unsupported):
        raise invalid(f"{name} is not supported", name)


def refuse_unsupported_tools(given: dict[str, Any]) -> None:
    """Refuse tools that are no functions, such as hosted ones, by what they are.

    Raises:
        JobError: `INVALID_REQUEST` naming the tool's type.
    """
    tools = given.get("tools")
    for place, tool in enumerate(tools if isinstance(tools, list) else []):
        kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
        if kind != "function":
            raise invalid(f"tools.{place}: a tool of type {str(kind)[:64]!r} is not supported", "tools")


def refuse_unsupported_items(
    given: object, param: str, kinds: Collection[str] = _MESSAGES, parts: Collection[str] = _TEXT_PARTS
) -> None:
    """Refuse unsupported items and parts in a conversation.

    Malformed items are ignored here; they are refused later.

    Args:
        given: messages, or a response's input, as received.
        param: the field's name.
        kinds: the supported kinds of items.
        parts: the supported types of parts of an item's content.

    Raises:
        JobError: `INVALID_REQUEST` naming the item and what is not supported.
    """
    for place, item in enumerate(given if isinstance(given, list) else ()):
        if isinstance(item, dict) and (what := _unsupported_of(item, kinds, parts)) is not None:
            raise invalid(f"{param}[{place}]: {what} is not supported", param)


def _asked(given: dict[str, Any], unsupported: Fields) -> Iterator[str]:
    for name, nothing in unsupported.items():
        value = given.get(name)
        # Compares types as well, because 0 == False: `logprobs: 0` has an effect, `logprobs: false` has none.
        if value is not None and not any(type(value) is type(no) and value == no for no in nothing):
            yield name


def _unsupported_of(item: dict[str, Any], kinds: Collection[str], parts: Collection[str]) -> str | None:
    kind, role, content = item.get("type", "message"), item.get("role"), item.get("content")
    if not isinstance(kind, str) or kind not in kinds:
        return f"an item of type {_shown(kind)}"
    if isinstance(role, str) and role not in _ROLES:
        return f"role {_shown(role)}"
    for name in _asked(item, _IN_MESSAGES):
        return name
    for part in (*_listed(content), *_listed(item.get("output"))):
        inner = [one for one in _listed(part.get("content")) if _is_other(one, _TEXT_PARTS)]
        if _is_other(part, parts) or inner:
            return f"a part of type {_shown((inner or [part])[0]['type'])}"
    return None


def _listed(given: object) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _is_other(part: dict[str, Any], kinds: Collection[str]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind not in kinds


def _shown(value: object) -> str:
    return repr(value)[:64]
