"""The model's own chat template, rendered in a sandbox, bounded in size and time.

The template comes with the model file and is a program; the prompt comes from a client and is data. Only the
template's own text may become special tokens, so a rendered conversation is told apart into what the template wrote
before the prompt, the prompt, and what it wrote after it.
"""

import json
import time
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker_orcd.engine.model import PromptRefused

MAX_RENDERED_CHARS = 1_000_000
MAX_RENDER_SEC = 2.0
_PROBE = "PROBE7c1e0f52a94bPROBE"


class ChatTemplate:
    """Renders one user message the way the model was trained on."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        self._template = environment.from_string(source)
        self._special = {"bos_token": bos, "eos_token": eos}
        before, probe, after = self._render(_PROBE).partition(_PROBE)
        if not probe:
            raise PromptRefused("the model's chat template does not show the user's message", None)
        self._before, self._after = before, after

    def split(self, prompt: str) -> tuple[str, str, str]:
        """The rendered conversation: the template's text, the prompt as the template left it, the template's text.

        Raises:
            PromptRefused: the template refuses it, or treats it so that the prompt cannot be told apart.
        """
        rendered = self._render(prompt)
        ends = len(rendered) - len(self._after)
        if not (
            rendered.startswith(self._before) and rendered.endswith(self._after) and ends >= len(self._before)
        ):
            raise PromptRefused(
                "the model's chat template changes with this prompt; send it with template 'none'"
            )
        return self._before, rendered[len(self._before) : ends], self._after

    def _render(self, prompt: str) -> str:
        deadline = time.monotonic() + MAX_RENDER_SEC
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, **self._special
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARS or time.monotonic() > deadline:
                    raise PromptRefused("the model's chat template takes too long or grows too large", None)
        except (TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise PromptRefused(
                f"the model's chat template fails on this prompt: {type(error).__name__}"
            ) from error
        return "".join(pieces)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
