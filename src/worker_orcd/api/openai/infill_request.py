"""The body of `POST /infill`."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.completion_request import infill_prompt
from worker_orcd.api.openai.requests import Completions
from worker_orcd.jobs.request import Body, JobRequest


class Chunk(Body):
    """Another file, or a part of one."""

    model_config = ConfigDict(extra="ignore")

    text: str
    filename: str = "tmp"


class InfillRequest(Completions):
    """The body of `POST /infill`, as llama-server has it."""

    refused: ClassVar = unsupported.INFILL

    n: Literal[1] | None = None
    max_tokens: int | None = Field(
        default=None, ge=0, description="or `n_predict`; with 0 the prompt is computed for later requests"
    )
    input_prefix: str = Field(description="the text before the gap")
    input_suffix: str = Field(description="the text behind the gap")
    input_extra: list[Chunk] = Field(default=[], description="other files, the most important one last")
    prompt: str = Field(default="", description="what the gap begins with")

    @property
    def names(self) -> dict[str, str]:
        """What this request calls a job's fields, where the names differ."""
        return {"suffix": "input_suffix", "prompt": "input_prefix"} | self.constraint_names

    def wanted(self, name: str) -> list[JobRequest]:
        """Its job."""
        prompt = infill_prompt(
            self.input_prefix,
            self.input_suffix,
            prompt=self.prompt,
            extra=[chunk.model_dump() for chunk in self.input_extra],
            reserve=self.max_tokens,
        )
        return self.jobs(name, [prompt], template="infill", max_tokens=self.max_tokens)
