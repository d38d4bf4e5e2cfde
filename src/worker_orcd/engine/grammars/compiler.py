"""Compiles constraints with llguidance. Runs only in the processes of `process.py`: a grammar may take any time."""

import json
import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from worker_orcd.engine.grammars.messages import Mask, Vocabulary
from worker_orcd.engine.grammars.tool_grammar import Marks, tool_grammar
from worker_orcd.printable import printable
from worker_orcd.protocol.messages import Constraint
from worker_orcd.tool_calls.offer import Offered

_LIMITS = LLParserLimits(
    max_items_in_row=2000,
    step_max_items=4000,
    step_lexer_fuel=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""An object of 400 optional properties stays within these limits; a mask takes at most 60 ms."""
_WHITESPACE = r"\n[ \t]{0,32}| "
"""White space between JSON's tokens. Bounded, because small models otherwise write endless white space."""
_MAX_REASON_CHARS = 300
_MAX_TRIED = 64
"""The most parts of a schema that are compiled to locate a fault."""


class GrammarFault(Exception):
    """A constraint cannot be used. The message is a sentence for clients.

    Attributes:
        param: the field at fault, if the constraint has several.
    """

    def __init__(self, reason: str, param: str | None = None) -> None:
        super().__init__(reason)
        self.param = param


class Tokens:
    """A vocabulary in llguidance's interface. Forced text is tokenized greedily, by the longest tokens."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ends = vocabulary.ends
        self.tokens = vocabulary.tokens
        if not self.ends:
            # llguidance needs an end token. The engine never draws this one: it ends a complete output itself.
            self.tokens = [*self.tokens, b"\xff<end>"]
            self.ends = [len(vocabulary.tokens)]
        self.eos_token_id = self.ends[0]
        self._ids = {text: id_ for id_, text in reversed(list(enumerate(self.tokens)))}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Token ids of a text. Bytes that no token contains are left out."""
        ids, place = [], 0
        while place < len(text):
            for end in range(min(len(text), place + self._longest), place, -1):
                id_ = self._ids.get(text[place:end])
                if id_ is not None:
                    ids.append(id_)
                    place = end
                    break
            else:
                place += 1
        return ids


class Compiler:
    """Compiles constraints for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Prepare a vocabulary. Takes about a second for a large one."""
        tokens = Tokens(vocabulary)
        self._ends = tokens.ends
        self._marks = Marks(vocabulary, frozenset(vocabulary.ends))
        self._tokenizer = LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.ends)

    def compile(self, constraint: Constraint, *, ignore_eos: bool = False, opened: str = "") -> "Matcher":
        """Compile a constraint.

        Args:
            constraint: what to compile.
            ignore_eos: end-of-generation tokens are allowed only where no other token is.
            opened: the mark with which the prompt opens the reasoning, "" if it does not. Only with tools.

        Raises:
            GrammarFault: the constraint is malformed, not enforceable, or too large.
        """
        if constraint.kind == "tools":
            constraint = Constraint("lark", self._with_tools(constraint, opened))
        try:
            matcher = self._matcher(constraint)
        except GrammarFault as fault:
            place = self._place(constraint, str(fault)) if constraint.kind == "json_schema" else ""
            raise GrammarFault(f"{fault}{place}") from None
        return Matcher(matcher, self._ends, ignore_eos=ignore_eos)

    def _with_tools(self, constraint: Constraint, opened: str) -> str:
        """The grammar of an output with tools. Each schema is compiled alone first, because a fault then has a place.

        Raises:
            GrammarFault: a schema is malformed or not enforceable.
        """
        offered = Offered.of(constraint.text)
        if offered.answer is not None:
            self.compile(Constraint("json_schema", json.dumps(offered.answer), offered.lenient))
        for function in offered.functions:
            if function.strict and function.parameters:
                try:
                    self.compile(Constraint("json_schema", json.dumps(function.parameters)))
                except GrammarFault as fault:
                    raise GrammarFault(f"the parameters of {function.name}: {fault}", "tools") from None
        options = {"whitespace_pattern": _WHITESPACE}
        return tool_grammar(offered, constraint.formats, self._marks, options, opened=opened)

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        try:
            matcher = LLMatcher(self._tokenizer, _grammar(constraint), limits=_LIMITS, log_level=0)
        except Exception as error:
            # llguidance and its translation of GBNF raise exceptions of any type, Rust panics included.
            raise GrammarFault(_sentence(str(error) or type(error).__name__)) from error
        if matcher.is_error():
            raise GrammarFault(_sentence(matcher.get_error()))
        return matcher

    def _place(self, constraint: Constraint, reason: str) -> str:
        """The place of a fault in a schema, as the JSON pointer of the smallest part with the same fault."""
        try:
            schema = json.loads(constraint.text)
        except (ValueError, RecursionError):
            return ""
        shared = {name: schema[name] for name in ("$defs", "definitions") if _is_object(schema, name)}
        pointer, part, tried = "", schema, 0
        while tried < _MAX_TRIED:
            for name, inner in _parts(part):
                tried += 1
                text = json.dumps({**shared, **inner} if isinstance(inner, dict) else inner)
                try:
                    self._matcher(Constraint("json_schema", text, constraint.lenient))
                except GrammarFault as fault:
                    if str(fault) == reason:
                        pointer, part = f"{pointer}/{name}", inner
                        break
                if tried >= _MAX_TRIED:
                    break
            else:
                break
        return f", at {printable(pointer)[:_MAX_REASON_CHARS]}" if pointer else ""


class Matcher:
    """Matches one output against a grammar, token by token."""

    def __init__(self, matcher: LLMatcher, ends: list[int], *, ignore_eos: bool) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ignore_eos = ignore_eos

    def accept(self, tokens: tuple[int, ...]) -> None:
        """Advance by generated tokens.

        Raises:
            GrammarFault: a token is not allowed, or the grammar is too complex at this place.
        """
        if not self._matcher.consume_tokens(list(tokens)):
            raise GrammarFault(_sentence(self._matcher.get_error()))

    def mask(self) -> Mask:
        """Which tokens may come next.

        Raises:
            GrammarFault: no token may come next, or the grammar is too complex at this place.
        """
        try:
            bits = bytearray(self._matcher.compute_bitmask())
        except Exception as error:
            raise GrammarFault(_sentence(str(error))) from error
        if self._matcher.is_error():
            raise GrammarFault(_sentence(self._matcher.get_error()))
        complete = self._matcher.is_stopped()
        if self._ignore_eos and not complete:
            for end in self._ends:
                bits[end >> 3] &= ~(1 << (end & 7))
        if not any(bits):
            raise GrammarFault("the grammar allows no further token here")
        return Mask(bytes(bits), complete)


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's notation."""
    match constraint.kind:
        case "json_schema":
            lenient = constraint.lenient
            return LLMatcher.grammar_from_json_schema(
                "{}" if constraint.text == "true" else constraint.text,  # Options require an object.
                overrides={
                    "whitespace_pattern": _WHITESPACE,
                    "lenient": lenient,
                    "coerce_one_of": lenient,
                },
            )
        case "gbnf":
            return LLMatcher.grammar_from_lark(gbnf_to_lark(_CODE_POINT.sub(_as_character, constraint.text)))
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.text)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "tools":
            raise AssertionError("has a grammar of its own")


_CODE_POINT = re.compile(r"(?<!\\)((?:\\\\)*)(?:\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8}))")


def _as_character(match: re.Match[str]) -> str:
    """The character of a GBNF escape that `gbnf_to_lark` does not translate."""
    number = int(match[2] or match[3], 16)
    if number < 0x80:  # ASCII: the character may have a meaning in a grammar.
        return f"{match[1]}\\x{number:02x}"
    try:
        character = chr(number)
        character.encode()
    except (ValueError, OverflowError):
        raise GrammarFault(f"{match[0]} is not a character") from None
    return f"{match[1]}{character}"


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly within a schema, and their JSON pointers."""
    for name, value in schema.items() if isinstance(schema, dict) else ():
        if name in _SCHEMAS_BY_NAME and isinstance(value, dict):
            yield from ((f"{name}/{_escaped(inner)}", one) for inner, one in value.items())
        elif name in _LISTS_OF_SCHEMAS and isinstance(value, list):
            yield from ((f"{name}/{place}", one) for place, one in enumerate(value))
        elif name in _SCHEMAS and isinstance(value, dict):
            yield name, value


_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
_SCHEMAS = frozenset({"items", "additionalProperties", "additionalItems"})


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _is_object(schema: Any, name: str) -> bool:
    return isinstance(schema, dict) and isinstance(schema.get(name), dict)


def _sentence(reason: str) -> str:
    """llguidance's error message, shortened and printable."""
    reason = reason.split("\n<", maxsplit=1)[0].replace("<non-verbose/>", "")
    return printable(" ".join(reason.split()))[:_MAX_REASON_CHARS] or "the grammar cannot be used"
