"""A Jinja environment like that of `transformers`, for which chat templates are written.

It also tracks client text: where Jinja makes a plain string of it (by joining, formatting or a filter), the string
becomes client text again.
"""

import functools
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker_orcd.engine.templates.client_text import Aliases

_NO_ALIASES = Aliases("", ())


class RaisedByTemplate(TemplateError):
    """The template itself refuses the conversation, for example because two user messages follow each other."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Renders one conversation at a time; `aliases` belong to its client text."""

    def __init__(self) -> None:
        """Set up the filters, globals and tags that chat templates expect."""
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.aliases = _NO_ALIASES
        self.now = datetime.now().astimezone()
        self.filters["tojson"] = self._tojson
        for name, function in self.filters.items():
            self.filters[name] = self._tracking(function)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = self._strftime_now

    def concat(self, parts: Iterable[str]) -> Any:
        """Join the output of a block, a macro or the whole template."""
        return self.aliases.tracked("".join(parts))

    def joined(self, values: Iterable[object]) -> Any:
        """The value of `a ~ b`."""
        return self.aliases.tracked("".join(map(str, values)))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # jinja2's signature.
        """Call a function or method for the template."""
        return __self.aliases.tracked(super().call(__context, __obj, *args, **kwargs))

    def _tracking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def tracking(*args: Any, **kwargs: Any) -> Any:
            return self.aliases.tracked(function(*args, **kwargs))

        return tracking

    def _strftime_now(self, form: str) -> str:
        return self.now.strftime(form)

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,  # The default in `transformers`.
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        text = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self.aliases.unescape_ascii(text) if ensure_ascii else text


class _Code(CodeGenerator):
    """Compiles `a ~ b` so that it keeps track of client text."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  # jinja2's signature.
        self.write("environment.joined((")
        for value in node.nodes:
            self.visit(value, frame)
            self.write(", ")
        self.write("))")


ChatEnvironment.code_generator_class = _Code


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks for training; only their content is rendered."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so.

    def parse(self, parser: Parser) -> nodes.Node:
        """The content, in its own scope, as in `transformers`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise RaisedByTemplate(str(message))
