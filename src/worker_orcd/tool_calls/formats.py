"""The common formats of tool calls."""

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from worker_orcd.tool_calls.call import Call, all_or_none, call_of, json_calls, json_values

ToolFormat = Literal["hermes", "llama3", "mistral", "deepseek", "granite", "lfm2", "gemma", "harmony"]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of tool calls.

    Attributes:
        name: the format's name.
        opening: the mark before the calls.
        closing: the mark after the calls; "": the calls are one JSON value and end with it.
        read: parses the calls between the marks; returns None for other text.
        head: pattern of the text before the first call's arguments, with the tool's name as the group `name`; None:
            arguments are not JSON, so a call can only be parsed when it is complete.
    """

    name: ToolFormat
    opening: str
    closing: str
    read: Callable[[str], list[Call] | None]
    head: re.Pattern[str] | None = None


_JSON_HEAD = re.compile(
    r'\s*\[?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?:"id"\s*:\s*"[^"\\]*"\s*,\s*)?'
    r'"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_NAMED = re.compile(r"\s*(?P<name>[\w.\-]+)\s*(?:\[CALL_ID\][\w\-]*)?(?:\[ARGS\])?\s*(?=\{)")
_MISTRAL_HEAD = re.compile(f"{_JSON_HEAD.pattern}|{_NAMED.pattern.replace('?P<name>', '?P<other>')}")


def _mistral(body: str) -> list[Call] | None:
    """A JSON list of calls; newer models write `NAME[ARGS]{…}`."""
    if body.lstrip().startswith(("[", "{")):
        return json_calls(body)
    named = _NAMED.match(body)
    values = json_values(body[named.end() :]) if named else None
    if named is None or values is None or len(values) != 1:
        return None
    return all_or_none([call_of({"name": named["name"], "arguments": values[0]})])


DEEPSEEK_MARKS = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
"""The marks before a call, between what it is and its name or arguments, and after it."""
_DEEPSEEK_CALL = DEEPSEEK_MARKS[0]
_DEEPSEEK = re.compile(
    rf"\s*{_DEEPSEEK_CALL}(?:function<｜tool▁sep｜>([^\n<]+)\n```(?:json)?\n(.*?)\n```|([^<]+)<｜tool▁sep｜>(.*?))"
    r"<｜tool▁call▁end｜>\s*",
    re.DOTALL,
)
_DEEPSEEK_HEAD = re.compile(
    rf"\s*{_DEEPSEEK_CALL}(?:function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```(?:json)?\n|(?P<other>[^<]+)<｜tool▁sep｜>)\s*(?=\{{)"
)


def _deepseek(body: str) -> list[Call] | None:
    """`function`, a mark, the name and fenced JSON (V3, R1), or the name, a mark and JSON (V3.1)."""
    calls, place = [], 0
    while found := _DEEPSEEK.match(body, place):
        values = json_values(found[2] or found[4] or "")
        if values is None or len(values) != 1:
            return None
        calls.append(call_of({"name": (found[1] or found[3]).strip(), "arguments": values[0]}))
        place = found.end()
    return all_or_none(calls) if place == len(body) else None


def _python(body: str) -> list[Call] | None:
    """Python calls with literal keyword arguments, `f(a=1)` or `[f(a=1), g()]`, as of LFM2 and Gemma."""
    body = body.strip()
    if body.startswith("[{"):
        return json_calls(body)
    try:
        tree = ast.parse(body, mode="exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not all(isinstance(line, ast.Expr) for line in tree.body):
        return None
    values = [line.value for line in tree.body if isinstance(line, ast.Expr)]
    flat = [item for value in values for item in (value.elts if isinstance(value, ast.List) else [value])]
    return all_or_none(map(_python_call, flat))


def _python_call(node: ast.expr) -> Call | None:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and node.args
    ):
        node = node.args[0]  # Gemma wraps calls in `print`.
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        return None
    try:
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return call_of({"name": ast.unparse(node.func), "arguments": arguments})
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


BARE = Format("llama3", "", "", json_calls, _JSON_HEAD)
"""A JSON object `{"name", "parameters"}` at the beginning of an output, as of Llama 3."""
BARE_FIRST = ('"name"', '"type"', '"id"', '"function"', '"arguments"', '"parameters"')
"""The beginning of such an object."""


BEFORE_VALUE = re.compile(rf"{_NAMED.pattern.replace('?P<name>', '')}|\s*(?=[\[{{])")
"""Text before a call's JSON value, for calls that end with this value: the name, for Mistral's newer models."""


def arguments_of(name: str) -> Format:
    """A format for outputs that consist only of the arguments of a call of this tool."""

    def read(body: str) -> list[Call] | None:
        values = json_values(body)
        one = values[0] if values is not None and len(values) == 1 else None
        return all_or_none([call_of({"name": name, "arguments": one})])

    return Format("llama3", "", "", read, re.compile(r"\s*(?=\{)"))


FORMATS = (
    Format("hermes", "<tool_call>", "</tool_call>", json_calls, _JSON_HEAD),  # Also Qwen and Granite 4.
    Format("granite", "<|tool_call|>", "", json_calls, _JSON_HEAD),
    Format("llama3", "<|python_tag|>", "", json_calls, _JSON_HEAD),
    Format("mistral", "[TOOL_CALLS]", "", _mistral, _MISTRAL_HEAD),
    Format("lfm2", "<|tool_call_start|>", "<|tool_call_end|>", _python),
    Format("gemma", "```tool_code\n", "```", _python),
    Format("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _deepseek, _DEEPSEEK_HEAD),
)
REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks around reasoning at the beginning of an output."""
HARMONY_MARKS = (
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
)
REASONING_MARKS = frozenset({mark for pair in REASONING for mark in pair} | set(HARMONY_MARKS))
CALL_MARKS = REASONING_MARKS | {
    *(mark for one in FORMATS for mark in (one.opening, one.closing) if mark),
    *("[ARGS]", "[CALL_ID]", *DEEPSEEK_MARKS),
}
Marks = Literal["none", "reasoning", "calls"]
"""Which control tokens are part of a job's text: none, those of reasoning, or those of reasoning and calls."""
SHOWN_MARKS: dict[Marks, frozenset[bytes]] = {
    "none": frozenset(),
    "reasoning": frozenset(mark.encode() for mark in REASONING_MARKS),
    "calls": frozenset(mark.encode() for mark in CALL_MARKS),
}


def recognized(template: str) -> tuple[ToolFormat, ...]:
    """The formats whose marks a chat template contains."""
    if "<|channel|>" in template and "<|message|>" in template:
        return ("harmony",)
    return tuple(one.name for one in FORMATS if one.opening.strip() in template)


def formats_of(names: Iterable[str]) -> tuple[Format, ...]:
    """The formats with these names, and Hermes', which the generic prompt requests; without names, all formats."""
    wanted = {*names, "hermes"} if names else set(get_args(ToolFormat))
    return tuple(one for one in FORMATS if one.name in wanted)
