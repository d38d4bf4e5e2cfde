"""The model's own chat template, rendered in a sandbox, bounded in size and time.

The template comes with the model file and is a program; the prompt comes from a client and is data. Only the
template's own text may become special tokens, so a rendered conversation is told apart into what the template wrote
and what clients did.
"""

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker_orcd.engine.model import PromptRefused

MAX_RENDERED_CHARS = 1_000_000
MAX_RENDER_SEC = 2.0


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model writes, for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so.

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


Conversation = list[dict[str, str]]
"""Messages, each with a `role` and a `content`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered conversation. Only in the template's own text special tokens are what they look like."""

    text: str
    of_template: bool


class ChatTemplate:
    """Renders a conversation the way the model was trained on."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        """Compile it and try it.

        Raises:
            PromptRefused: it is no template, or does not show the user's message.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise PromptRefused(
                f"the model's chat template is broken: {error.message}", "template"
            ) from error
        self._special = {"bos_token": bos, "eos_token": eos}
        if _probe(0) not in self._render([{"role": "user", "content": _probe(0)}], _now()):
            raise PromptRefused("the model's chat template does not show the user's message", "template")

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """The rendered conversation up to where the model goes on: what the template wrote, and what clients did.

        It is rendered with probes first: they show where each content comes to stand.

        Raises:
            PromptRefused: the template refuses it, or treats it so that the contents cannot be told apart.
        """
        now = _now()
        probes = [message | {"content": _probe(n)} for n, message in enumerate(conversation)]
        first, *rest = _PROBED.split(self._render(probes, now))
        rendered = self._render(conversation, now)
        if not rendered.startswith(first):
            raise _changed()
        pieces, place = [Piece(first, of_template=True)], len(first)
        for number, frame in zip(rest[::2], rest[1::2], strict=True):
            content = _found(rendered, place, conversation[int(number)]["content"], frame)
            pieces += [Piece(content, of_template=False), Piece(frame, of_template=True)]
            place += len(content) + len(frame)
        if place != len(rendered):
            raise _changed()
        return pieces

    def _render(self, conversation: Conversation, now: datetime) -> str:
        deadline = time.monotonic() + MAX_RENDER_SEC
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=conversation,
                add_generation_prompt=True,
                strftime_now=now.strftime,
                **self._special,
            ):
                pieces.append(piece)
                size += len(piece)
                _check_bounds(size, deadline)
        except PromptRefused:
            raise
        except _RaisedByTemplate as error:
            raise PromptRefused(f"the model's chat template refuses this: {error.message}") from error
        except Exception as error:
            # It is a program of somebody else's; whatever it raises, this prompt cannot be rendered.
            raise PromptRefused(
                f"the model's chat template fails on this prompt: {type(error).__name__}"
            ) from error
        return "".join(pieces)


def _found(rendered: str, place: int, content: str, frame: str) -> str:
    """A content as the template left it at `place`, followed by `frame`: many trim it, some drop the thinking in it."""
    said = content.rpartition("</think>")[2]
    for left in (
        content,
        content.rstrip(),
        content.lstrip(),
        content.strip(),
        said,
        said.lstrip("\n"),
        said.strip(),
    ):
        if rendered.startswith(left + frame, place):
            return left
    raise _changed()


def _changed() -> PromptRefused:
    return PromptRefused("the model's chat template changes with this prompt; send it with template 'none'")


def _now() -> datetime:
    return datetime.now().astimezone()


def _probe(number: int) -> str:
    return f"PROBE{number}of7c1e0f52a94bPROBE"


_PROBED = re.compile(_probe(0).replace("0", r"(\d+)", 1))


def _check_bounds(size: int, deadline: float) -> None:
    if size > MAX_RENDERED_CHARS or time.monotonic() > deadline:
        raise PromptRefused("the model's chat template takes too long or grows too large", None)


class _RaisedByTemplate(TemplateError):
    """The template says itself what it does not like, such as two messages of the user's in a row."""


def _raise_exception(message: str) -> NoReturn:
    raise _RaisedByTemplate(str(message)[:200])


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
