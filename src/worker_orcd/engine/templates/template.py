"""Compiles, tries and renders one chat template. A template is untrusted: only the renderer's processes run it."""

from datetime import datetime
from typing import Any

from jinja2 import TemplateError, UndefinedError

from worker_orcd.engine.templates import open_end
from worker_orcd.engine.templates.client_text import Aliases
from worker_orcd.engine.templates.environment import ChatEnvironment, RaisedByTemplate
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.templates.special_tokens import Piece, SpecialTokens

MAX_RENDERED_CHARS = 4_000_000
"""The limit for one conversation. A request's body has at most a million characters."""
_MAX_REASON_CHARS = 200


_PROBE = "PROBE 7c1e0f52a94b"


class ChatTemplate:
    """Renders conversations in the format that the model was trained on."""

    def __init__(self, given: Source) -> None:
        """Compile the template and try it.

        Raises:
            TemplateFault: it does not compile, or does not show the user's message.
        """
        self._given = given
        self._special = SpecialTokens(given.special)
        self._environment = ChatEnvironment()
        try:
            self._template = self._environment.from_string(given.source)
        except Exception as error:
            # Untrusted input: the compiler may fail in any way, for example on its size or depth.
            raise TemplateFault(f"the model's chat template is broken: {_reason(error)}") from error
        self._defaults: dict[str, Any] = {}
        self._find_defaults()

    def render(self, variables: dict[str, Any]) -> list[Piece]:
        """Render a conversation into pieces to be tokenized one after the other.

        Args:
            variables: the template's variables, such as `messages`: JSON values. The last message may have an `end`.

        Raises:
            TemplateFault: the template refuses the conversation or fails on it.
        """
        variables, is_open = open_end.prepared(variables)
        text, of_client = self._written(variables)
        if is_open:
            try:
                text = text[: open_end.cut(text)]
            except open_end.NotShown:
                raise TemplateFault("the model's chat template does not show the last message") from None
            of_client = {place for place in of_client if place < len(text)}
        start, end = 0, len(text)
        given = self._given
        if given.adds_bos and given.bos and text.startswith(given.bos):
            start = len(given.bos) if of_client.isdisjoint(range(len(given.bos))) else 0
        if given.adds_eos and given.eos and text.endswith(given.eos, start):
            tail = end - len(given.eos)
            end = tail if of_client.isdisjoint(range(tail, end)) else end
        return self._special.pieces(text[start:end], (place - start for place in of_client))

    def _written(self, variables: dict[str, Any]) -> tuple[str, set[int]]:
        """The rendered text, and the positions of its client characters that could be part of a special token."""
        # Most conversations contain none of these characters and need no tracking.
        characters = self._special.characters
        texts = list(_strings(variables))
        used = {character for character in characters if any(character in text for text in texts)}
        aliases = Aliases(used, [*texts, self._given.source])
        environment = self._environment
        environment.aliases = aliases
        environment.now = now = datetime.now().astimezone()
        variables = {
            "bos_token": self._given.bos,
            "eos_token": self._given.eos,
            **self._defaults,
            **(aliases.track_all(variables) if used else variables),
        }
        if "datetime" in self._defaults:
            variables["datetime"] = now.strftime("%b %d %Y")
        try:
            written = "".join(self._pieces_of_output(variables))
        except TemplateFault:
            raise
        except RaisedByTemplate as error:
            message = aliases.show(error.message or "")[:_MAX_REASON_CHARS]
            raise TemplateFault(f"the model's chat template refuses this: {message}") from error
        except MemoryError as error:
            raise TemplateFault("the model's chat template takes too much memory with this prompt") from error
        except Exception as error:
            raise TemplateFault(
                f"the model's chat template fails on this prompt: {aliases.show(_reason(error))}"
            ) from error
        return aliases.show(written), set(aliases.places(written))

    def _pieces_of_output(self, variables: dict[str, Any]) -> list[str]:
        pieces, size = [], 0
        for piece in self._template.generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_RENDERED_CHARS:
                raise TemplateFault("the model's chat template writes too much with this prompt")
        return pieces

    def _find_defaults(self) -> None:
        """Choose default values of the template's variables: those of `transformers`, if the template works with
        them."""
        probe = {"messages": [{"role": "user", "content": _PROBE}], "add_generation_prompt": True}
        fault = TemplateFault("the model's chat template does not show the user's message")
        for defaults in _DEFAULTS:
            self._defaults = defaults
            try:
                if any(_PROBE in piece.text for piece in self.render(probe)):
                    return
            except TemplateFault as error:
                fault = error
                if not isinstance(error.__cause__, UndefinedError | TypeError):
                    break
        raise fault


_DEFAULTS: tuple[dict[str, Any], ...] = (
    {"tools": None, "documents": None},
    # Templates for tool use loop over the tools; older ones get functions and the date as text.
    {"tools": [], "documents": []},
    {"tools": [], "documents": [], "functions": "", "datetime": ""},
)


def _strings(value: Any) -> list[str]:
    """All strings in a JSON value, keys as well."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return found


def _reason(error: Exception) -> str:
    """A short description of an exception."""
    message = error.message if isinstance(error, TemplateError) else str(error)
    return f"{type(error).__name__}: {message or ''}"[:_MAX_REASON_CHARS].rstrip(": ")
