"""The body of `POST /v1/completions`."""

import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.requests import WHAT_FITS, Completions, TokenLimit
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import JobRequest

DEFAULT_COMPLETION_TOKENS = 16
"""The default of OpenAI and vLLM."""
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def infill_prompt(
    prefix: str,
    suffix: str,
    *,
    prompt: str = "",
    extra: list[dict[str, str]] | None = None,
    reserve: int | None = None,
) -> str:
    """A prompt with the template `infill`, in the engine's format (`engine/infill.py`)."""
    return json.dumps(
        {"prefix": prefix, "suffix": suffix, "prompt": prompt, "extra": extra, "reserve": reserve}
    )


class CompletionRequest(Completions):
    """The body of `POST /v1/completions`."""

    refused: ClassVar = unsupported.COMPLETION

    max_tokens: TokenLimit | None = Field(default=None, description=f"0 requires `echo`; {WHAT_FITS}")
    echo: bool | None = Field(
        default=None, description="begin the response with the prompt, and with its log probabilities"
    )
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="one text or several, or the token ids of one or several"
    )
    suffix: str | None = Field(
        default=None,
        description="the text after the gap to fill, if the model has tokens for infilling",
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        wanted = super().parse(raw)
        if wanted.max_tokens == 0 and not wanted.echo:
            raise invalid("max_tokens 0 requires echo", "max_tokens")
        if wanted.suffix and not all(isinstance(prompt, str) for prompt in wanted.prompts):
            raise invalid("suffix cannot be combined with prompts of token ids", "suffix")
        if wanted.suffix and wanted.echo and wanted.logprobs is not None:
            raise invalid("suffix cannot be combined with both echo and logprobs", "suffix")
        return wanted

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts or token ids."""
        one = isinstance(self.prompt, str) or isinstance(next(iter(self.prompt), None), int)
        return [self.prompt] if one else list(self.prompt)

    def wanted(self, name: str) -> list[JobRequest]:
        """Its jobs."""
        prompts = self.prompts
        if not prompts or not (all(prompts) or self.suffix):
            raise invalid("prompt must not be empty", "prompt")
        most = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        if self.suffix:
            gaps = [infill_prompt(prompt, self.suffix) for prompt in prompts]
            return self.jobs(name, gaps, template="infill", max_tokens=most)
        texts = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in prompts]
        template = "none" if isinstance(prompts[0], str) else "tokens"
        # Only the engine can turn token ids into text.
        shows_tokens = self.echo and (self.logprobs is not None or template == "tokens")
        scored = (self.logprobs or 0) if shows_tokens else None
        return self.jobs(name, texts, template=template, max_tokens=most, prompt_logprobs=scored)

    @property
    def echoed(self) -> list[str | None]:
        """By choice, the text with which the response begins; None: the text of the prompt's tokens. Empty without
        `echo`."""
        texts = [prompt if isinstance(prompt, str) else None for prompt in self.prompts if self.echo]
        return [text for text in texts for _ in range(self.n or 1)]
