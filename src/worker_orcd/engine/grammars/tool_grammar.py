"""The grammar of an output that may contain tool calls, in llguidance's Lark notation.

Text is free. From the mark with which a call begins in the model's format, the output is a call of an offered function,
with arguments that the function's schema allows. If the answer has a schema, too, the output is either calls or such an
answer. Calls whose arguments are not JSON (LFM2, Gemma) are only enclosed by their marks.
"""

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from worker_orcd.engine.grammars.messages import Vocabulary
from worker_orcd.tool_calls.formats import DEEPSEEK_MARKS, HARMONY_MARKS, REASONING, ToolFormat, formats_of
from worker_orcd.tool_calls.offer import ANY_ARGUMENTS, Offered, answer_or_call

_SPACE = r"[ \t\r\n]{0,8}"
_TERMINALS = r"""%llguidance {}
TEXT: /(.|\n)*/
WS: /[ \t\r\n]{1,8}/
"""
_UNENFORCED = frozenset({"lfm2", "gemma"})
"""Formats whose arguments are not JSON."""
_HARMONY = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|constrain|>")
_TO = "to=functions."


class Marks:
    """The marks of a vocabulary: special tokens, or text that may be part of any tokens."""

    def __init__(self, vocabulary: Vocabulary, ends: Collection[int]) -> None:
        """`ends`: the end-of-generation tokens."""
        self._texts = frozenset(vocabulary.tokens)
        self._special = {
            text[1:].decode("utf-8", "replace"): id_
            for id_, text in enumerate(vocabulary.tokens)
            if text[:1] == b"\xff" and text[1:] and id_ not in ends
        }

    def one_token(self, mark: str) -> bool:
        """Whether the vocabulary has a token for a mark, as those of models that were trained to write it."""
        return mark in self._special or mark.encode() in self._texts

    def special(self, mark: str) -> bool:
        """Whether a mark is a special token."""
        return mark in self._special

    def written(self, mark: str) -> str:
        """A mark in a rule."""
        return f"<[{self._special[mark]}]>" if mark in self._special else quoted(mark)

    def others(self, marks: Iterable[str]) -> str:
        """All special tokens but these, in a rule; "" if there are none."""
        left = sorted(set(self._special.values()) - {self._special.get(mark) for mark in marks})
        ranges: list[list[int]] = []
        for id_ in left:
            if ranges and ranges[-1][1] == id_ - 1:
                ranges[-1][1] = id_
            else:
                ranges.append([id_, id_])
        return f"<[{','.join(f'{low}-{high}' for low, high in ranges)}]>" if ranges else ""


def quoted(text: str) -> str:
    """A text in a rule."""
    return json.dumps(text, ensure_ascii=False)


def tool_grammar(
    offered: Offered, formats: tuple[ToolFormat, ...], marks: Marks, options: dict[str, Any], *, opened: str
) -> str:
    """The grammar.

    Args:
        offered: the functions, and the schema of the answer.
        formats: the model's; empty: unknown.
        marks: of the model's vocabulary.
        options: llguidance's options for JSON.
        opened: the mark with which the prompt opens the reasoning, "" if it does not.
    """
    rules = _Rules(offered, marks, options)
    if "harmony" in formats and all(map(marks.special, _HARMONY)):
        return rules.harmony()
    return rules.tagged(formats, opened)


class _Rules:
    def __init__(self, offered: Offered, marks: Marks, options: dict[str, Any]) -> None:
        self._offered = offered
        self._marks = marks
        self._options = options
        self._rules = [_TERMINALS]
        for place, function in enumerate(offered.functions):
            schema = function.parameters if function.strict and function.parameters else ANY_ARGUMENTS
            self._rules.append(f"args{place}: {self._json(schema, lenient=False)}")

    def tagged(self, formats: tuple[ToolFormat, ...], opened: str) -> str:
        """For formats that mark calls within text, and bare JSON calls at the beginning."""
        answer = self._offered.answer
        used = [one for one in formats_of(formats) if one.name not in _UNENFORCED or answer is not None]
        self._rules += [f"body_{one.name}: {self._body(one.name, one.closing)}" for one in used]
        calls = [(one.name, one.opening) for one in used]
        if answer is None:
            self._text_and_calls(calls)
        else:
            self._calls_or_answer(answer, formats, calls)
        finished, unfinished = self._thoughts(opened)
        thoughts = [*(f"{one} after" for one in finished), *unfinished]
        self._rules.append(f"start: {' | '.join(thoughts if opened else ['first', *thoughts])}")
        return "\n".join(self._rules)

    def _thoughts(self, opened: str) -> tuple[list[str], list[str]]:
        """Reasoning up to the mark that ends it, and reasoning with which the output ends."""
        finished, unfinished = [], []
        for number, (begins, ends) in enumerate(REASONING):
            if opened and begins != opened:
                continue
            if not opened and self._offered.answer is not None and not self._marks.one_token(begins):
                continue  # A model that is not trained to reason would begin to, because it may write no other text.
            if self._marks.special(ends) and (opened or self._marks.special(begins)):
                before = "" if opened else f"WS? {self._marks.written(begins)} "
                # The same text in both: of two different sets of special tokens, llguidance would follow only one.
                before += self._text_but([ends])
                self._rules.append(f"thought{number}: {before} {self._marks.written(ends)}")
                unfinished.append(before)
            else:
                before = "" if opened else f"{_SPACE}{re.escape(begins)}"
                end = re.escape(ends).replace("/", r"\/")
                self._rules.append(f"thought{number}[lazy]: /{before}(.|\\n)*{end}/")
                unfinished.append(f"/{before}(.|\\n)*/")
            finished.append(f"thought{number}")
        return finished, unfinished

    def _text_but(self, marks: Iterable[str]) -> str:
        """Any text, and special tokens except these."""
        others = self._marks.others(marks)
        return f"(TEXT {others})* TEXT" if others else "TEXT"

    def _text_and_calls(self, calls: list[tuple[ToolFormat, str]]) -> None:
        """Free text with calls."""
        begins = "|".join(re.escape(begins) for begins, _ in REASONING)
        self._rules += [
            f"THINKING: /{_SPACE}({begins})(.|\\n)*/",
            "FIRST_TEXT: TEXT & ~THINKING",
            "tail: TEXT",
        ]
        later, first = [], []
        for name, opening in calls:
            if self._marks.special(opening):
                later.append(f"TEXT {self._marks.written(opening)} body_{name}")
                first.append(f"FIRST_TEXT {self._marks.written(opening)} body_{name}")
            else:
                mark = f"MARK_{name.upper()}"
                self._rules += [
                    f"{mark}: TEXT {quoted(opening)}",
                    f"FIRST_{mark}: {mark} & ~THINKING",
                    f"mark_{name}[lazy]: {mark}",
                    f"first_{name}[lazy]: FIRST_{mark}",
                ]
                later.append(f"mark_{name} body_{name}")
                first.append(f"first_{name} body_{name}")
        openings = [opening for _, opening in calls]
        if others := self._marks.others(openings):
            later.append(f"TEXT {others}")
        if others := self._marks.others([*openings, *(begins for begins, _ in REASONING)]):
            first.append(f"FIRST_TEXT {others}")
        for place, function in enumerate(self._offered.functions):
            self._rules.append(
                f"bare{place}[lazy]: /{_SPACE}{self._head(function.name, 'arguments|parameters')}/"
            )
        bare = " | ".join(
            f'bare{place} WS? args{place} WS? "}}"' for place in range(len(self._offered.functions))
        )
        self._rules += [
            f"bare: ({bare})",
            f"later: {' | '.join(later)}",
            "after: bare* later* tail",
            f"first: bare+ later* tail | ({' | '.join(first)}) later* tail | tail",
        ]

    def _calls_or_answer(
        self, answer: Any, formats: tuple[ToolFormat, ...], calls: list[tuple[ToolFormat, str]]
    ) -> None:
        """Only calls, or only an answer. In one schema with the answer, if they are JSON objects without marks."""
        if not formats or "llama3" in formats:
            answer = answer_or_call(self._offered)
        call = " | ".join(f"{self._marks.written(opening)} body_{name}" for name, opening in calls)
        more = " (WS? call)*" if self._offered.parallel else ""
        self._rules += [
            f"answer: {self._json(answer, lenient=self._offered.lenient)}",
            f"call: {call}",
            f"first: call{more} WS? | answer",
            "after: WS? first",
        ]

    def _body(self, name: ToolFormat, closing: str) -> str:
        """What follows a format's opening mark."""
        end = f" WS? {self._marks.written(closing)}" if closing else ""
        match name:
            case "llama3":
                call = self._call("parameters")
                return f'WS? {call} (WS? ";" WS? {call})*'
            case "granite":
                return f"WS? {self._list()}"
            case "mistral":
                return f"WS? {self._list()} | {self._named()}"
            case "deepseek":
                return f"({self._deepseek()})+ WS?{end}"
            case "lfm2" | "gemma":
                if self._marks.special(closing):
                    return f"TEXT {self._marks.written(closing)}"
                self._rules.append(f"{name}_end[lazy]: /(.|\\n)*{re.escape(closing)}/")
                return f"{name}_end"
            case _:
                return f"WS? {self._call('arguments')}{end}"

    def _list(self) -> str:
        call = self._call("arguments")
        return f'"[" WS? {call} (WS? "," WS? {call})* WS? "]"'

    def _named(self) -> str:
        """`NAME[ARGS]{…}`, as newer models of Mistral write it."""
        ids = f"({self._marks.written('[CALL_ID]')} /[A-Za-z0-9]{{1,32}}/)?"
        arguments = self._marks.written("[ARGS]")
        return " | ".join(
            f"WS? {quoted(function.name)} {ids} {arguments} WS? args{place}"
            for place, function in enumerate(self._offered.functions)
        )

    def _deepseek(self) -> str:
        """The form of V3 and R1, with the JSON in a fence, and that of V3.1."""
        begin, separator, end = map(self._marks.written, DEEPSEEK_MARKS)
        forms = []
        for place, function in enumerate(self._offered.functions):
            fenced = quoted(f"{function.name}\n```json\n")
            forms.append(f'"function" {separator} {fenced} args{place} "\\n```"')
            forms.append(f"{quoted(function.name)} {separator} WS? args{place}")
        return f"WS? {begin} ({' | '.join(forms)}) WS? {end}"

    def _call(self, key: str) -> str:
        """A JSON object with a name and, as `key`, arguments."""
        forms = " | ".join(
            f'/{self._head(function.name, key)}/ WS? args{place} WS? "}}"'
            for place, function in enumerate(self._offered.functions)
        )
        return f"({forms})"

    def _head(self, name: str, key: str) -> str:
        """A regular expression for the beginning of such an object, up to the arguments."""
        s = _SPACE
        kind = rf'("type"{s}:{s}"function"{s},{s})?'
        return rf'\{{{s}{kind}"name"{s}:{s}"{re.escape(name)}"{s},{s}"({key})"{s}:'

    def harmony(self) -> str:
        """For gpt-oss: messages with headers. A header that names a function begins a call."""
        start, end, channel, message, constrain = map(self._marks.written, _HARMONY)
        calls = rf"(.|\n)*{re.escape(_TO)}(.|\n)*"
        text = self._text_but(HARMONY_MARKS)
        more = f"({constrain} HEADER)? {message}"
        self._rules += [
            f"HEADER: /[^<]{{0,200}}/ & ~/{calls}/",
            f"THOUGHT: /[ ]?(analysis|commentary)[^<]{{0,200}}/ & ~/{calls}/",
        ]
        if self._offered.answer is None:
            forms = [f"HEADER ({channel} HEADER)? {more} {text}"]
        else:
            self._rules.append(f"answer: {self._json(self._offered.answer, lenient=self._offered.lenient)}")
            forms = [
                f"HEADER {channel} THOUGHT {more} {text}",
                f'HEADER {channel} /[ ]?final[ ]?/ "json"? {more} answer',
            ]
        for place, function in enumerate(self._offered.functions):
            to = re.escape(_TO + function.name)
            self._rules.append(rf"TO{place}: /[^<]{{0,200}}{to}([ \n][^<]{{0,200}})?/")
            forms.append(f"HEADER {channel} TO{place} {more} args{place}")
            forms.append(f"TO{place} {channel} HEADER {more} args{place}")
        self._rules += [f"one: {' | '.join(forms)}", f"start: one ({end}? {start} one)* {end}?"]
        return "\n".join(self._rules)

    def _json(self, schema: Any, *, lenient: bool) -> str:
        options = {"x-guidance": {**self._options, "lenient": lenient, "coerce_one_of": lenient}}
        allowed = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
        return f"%json {json.dumps({**allowed, **options}, ensure_ascii=False)}"
