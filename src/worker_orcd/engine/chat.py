"""The model's own chat template, rendered in a sandbox, bounded in size and time.

The template comes with the model file and is a program; the prompt comes from a client and is data. Only the
template's own text may become special tokens, so a rendered conversation is told apart into what the template wrote
before the prompt, the prompt, and what it wrote after it.
"""

import json
import time
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker_orcd.engine.model import PromptRefused

MAX_RENDERED_CHARS = 1_000_000
MAX_RENDER_SEC = 2.0
_PROBE = "PROBE7c1e0f52a94bPROBE"


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model writes, for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so.

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders one user message the way the model was trained on."""

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
        self._frame(datetime.now().astimezone())

    def split(self, prompt: str) -> tuple[str, str, str]:
        """The rendered conversation: the template's text, the prompt as the template left it, the template's text.

        Raises:
            PromptRefused: the template refuses it, or treats it so that the prompt cannot be told apart.
        """
        now = datetime.now().astimezone()
        before, after = self._frame(now)
        rendered = self._render(prompt, now)
        ends = len(rendered) - len(after)
        if not (rendered.startswith(before) and rendered.endswith(after) and ends >= len(before)):
            raise PromptRefused(
                "the model's chat template changes with this prompt; send it with template 'none'"
            )
        return before, rendered[len(before) : ends], after

    def _frame(self, now: datetime) -> tuple[str, str]:
        """What the template writes before and after a message; it may depend on the date."""
        before, probe, after = self._render(_PROBE, now).partition(_PROBE)
        if not probe:
            raise PromptRefused("the model's chat template does not show the user's message", "template")
        return before, after

    def _render(self, prompt: str, now: datetime) -> str:
        deadline = time.monotonic() + MAX_RENDER_SEC
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=[{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                strftime_now=now.strftime,
                **self._special,
            ):
                pieces.append(piece)
                size += len(piece)
                _check_bounds(size, deadline)
        except PromptRefused:
            raise
        except Exception as error:
            # It is a program of somebody else's; whatever it raises, this prompt cannot be rendered.
            raise PromptRefused(
                f"the model's chat template fails on this prompt: {type(error).__name__}"
            ) from error
        return "".join(pieces)


def _check_bounds(size: int, deadline: float) -> None:
    if size > MAX_RENDERED_CHARS or time.monotonic() > deadline:
        raise PromptRefused("the model's chat template takes too long or grows too large", None)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
