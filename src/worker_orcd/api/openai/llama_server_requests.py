"""The bodies of `POST /infill` and `POST /completion`, for llama-server's clients."""

import json
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.completion_request import TokenId, infill_prompt
from worker_orcd.api.openai.requests import WHAT_FITS, Completions, TokenLimit, limit
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body, JobRequest


class LlamaServerRequest(Completions):
    """The common fields of both bodies."""

    refused: ClassVar = unsupported.LLAMA_SERVER_REQUEST

    n: Literal[1] | None = None
    max_tokens: TokenLimit | None = Field(
        default=None,
        description=f"or `n_predict`; 0: only compute the prompt, for later requests; {WHAT_FITS}",
    )
    response_fields: list[str] = Field(
        default=[],
        description="only these fields of the response, or of a stream's last chunk; a path such as `timings/prompt_n` "
        "names a nested field, and is its name in the response",
    )


class Chunk(Body):
    """Another file, or a part of one."""

    model_config = ConfigDict(extra="ignore")

    text: str
    filename: str = "tmp"


class InfillRequest(LlamaServerRequest):
    """The body of `POST /infill`, as in llama-server."""

    input_prefix: str = Field(description="the text before the gap")
    input_suffix: str = Field(description="the text after the gap")
    input_extra: list[Chunk] = Field(default=[], description="other files, the most important one last")
    prompt: str = Field(default="", description="the beginning of the text in the gap")

    @property
    def names(self) -> dict[str, str]:
        """This API's names of a job's fields, where they differ."""
        return {"suffix": "input_suffix", "prompt": "input_prefix"} | self.constraint_names

    def wanted(self, name: str) -> list[JobRequest]:
        """The request's job."""
        prompt = infill_prompt(
            self.input_prefix,
            self.input_suffix,
            prompt=self.prompt,
            extra=[chunk.model_dump() for chunk in self.input_extra],
            reserve=limit(self.max_tokens),
        )
        return self.jobs(name, [prompt], template="infill", max_tokens=self.max_tokens)


class RawCompletionRequest(LlamaServerRequest):
    """The body of `POST /completion`, as in llama-server."""

    prompt: str | list[TokenId] = Field(
        description="a text, in which special tokens are parsed, or token ids"
    )

    def wanted(self, name: str) -> list[JobRequest]:
        """The request's job."""
        if not self.prompt:
            raise invalid("prompt must not be empty", "prompt")
        is_text = isinstance(self.prompt, str)
        prompt = self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt)
        return self.jobs(name, [prompt], template="none" if is_text else "tokens", max_tokens=self.max_tokens)
