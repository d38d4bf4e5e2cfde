"""Turns prompts into token ids: raw text, conversations in the model's chat template, and infill prompts."""

import contextlib
import json
from typing import Any

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.model import PromptRefused
from worker_orcd.engine.templates.renderer import Renderer, RendererLost
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.tokenizer import Tokenizer
from worker_orcd.protocol.messages import Template
from worker_orcd.tool_calls.formats import ToolFormat, recognized
from worker_orcd.tool_calls.generic_prompt import PROBE, shows_tools, with_tools


class PromptEncoder:
    """One model's tokenizer and chat template. Thread-safe.

    Attributes:
        tool_formats: formats of tool calls that the chat template contains.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None) -> None:
        """Compile the chat template.

        Without a template, prompts are used unchanged. With a broken template, prompts require `template` `none`.
        """
        self._tokenizer = tokenizer
        self._renderer: Renderer | None = None
        self._fault: str | None = None
        self._takes_tools = False
        self.tool_formats: tuple[ToolFormat, ...] = ()
        if chat_template is not None:
            self.tool_formats = recognized(chat_template)
            self._compile(chat_template)

    def encode(
        self, prompt: str, template: Template, max_tokens: int, in_hand: CurrentPrompt | None = None
    ) -> list[int]:
        """Token ids of a prompt. `max_tokens` bounds an infill prompt; other arguments: see `Model.encode`.

        Raises:
            PromptRefused: the prompt cannot be rendered or tokenized.
        """
        if template == "plain":
            return self._tokenizer.encode(prompt, parse_special=True, add_special=False, in_hand=in_hand)
        if template == "infill":
            return self._tokenizer.encode_infill(prompt, max_tokens)
        if template != "none" and self._fault is not None:
            raise PromptRefused(self._fault, "template")
        if template == "messages" and self._renderer is None:
            raise PromptRefused("the model has no chat template")
        if template == "none" or self._renderer is None:
            return self._tokenizer.encode(prompt, parse_special=True, add_special=True, in_hand=in_hand)
        variables = self._variables(prompt, template) | {"add_generation_prompt": True}
        try:
            pieces = self._renderer.render(variables, in_hand)
        except TemplateFault as fault:
            raise PromptRefused(str(fault)) from fault
        return self._tokenizer.encode_pieces(pieces, in_hand)

    def _variables(self, prompt: str, template: Template) -> dict[str, Any]:
        """The chat template's variables for a conversation."""
        if template != "messages":
            return {"messages": [{"role": "user", "content": prompt}]}
        return with_tools(json.loads(prompt), takes_tools=self._takes_tools)

    def _compile(self, chat_template: str) -> None:
        tokenizer = self._tokenizer
        source = Source(
            chat_template,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            adds_bos=tokenizer.adds_bos,
            adds_eos=tokenizer.adds_eos,
            special=tokenizer.special_tokens(),
        )
        try:
            self._renderer = Renderer(source)
        except (TemplateFault, RendererLost) as fault:
            self._fault = f"{fault}; send the prompt with template 'none'"
            return
        with contextlib.suppress(TemplateFault, RendererLost):
            self._takes_tools = shows_tools(self._renderer.render(PROBE))
