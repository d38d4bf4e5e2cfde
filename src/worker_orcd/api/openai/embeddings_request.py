"""The body of `POST /v1/embeddings`, and the jobs made from it."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.completion_request import TokenId
from worker_orcd.api.openai.requests import JobOptions
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import JobRequest

MAX_INPUTS = 2048
"""The most inputs of one request, as in OpenAI's API."""
MAX_DIMENSIONS = 2**20

Tokens = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingsRequest(JobOptions):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="ignore")

    names: ClassVar = {"prompt": "input"}
    """This API's names of a job's fields, where they differ."""

    input: str | list[str] | list[TokenId] | list[Tokens] = Field(
        description=f"one text or several, or the token ids of one or several; at most {MAX_INPUTS}"
    )
    model: str | None = Field(default=None, description="as in `GET /v1/models`")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="`base64`: 32-bit floats in little-endian order; default: `float`"
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DIMENSIONS,
        description="return only this many leading dimensions, normalized again; for models trained for it",
    )
    timeout_ms: int | None = Field(default=None, ge=1, description="as in `POST /execute`, for each input")

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        if (given := unsupported.object_in(raw)) is not None:
            unsupported.refuse_unsupported(given, unsupported.EMBEDDINGS)
        return super().parse(raw)

    @property
    def inputs(self) -> list[Any]:
        """The inputs: texts or token ids.

        Raises:
            JobError: `INVALID_REQUEST`: there are no inputs or too many, or one is empty.
        """
        one = isinstance(self.input, str) or isinstance(next(iter(self.input), None), int)
        inputs = [self.input] if one else list(self.input)
        if not inputs or not all(inputs):
            raise invalid("input must not be empty", "input")
        if len(inputs) > MAX_INPUTS:
            raise invalid(f"input may have at most {MAX_INPUTS} texts, not {len(inputs)}", "input")
        return inputs

    def wanted(self, name: str) -> list["EmbeddingJob"]:
        """One job for each input. They have the same group, and are parts of the request, whose name the first job
        has."""
        inputs = self.inputs
        several = len(inputs) > 1
        return [
            EmbeddingJob.of(
                job_id=f"{name}.{place}" if place else name,
                request_id=name if several else None,
                group=self.group or (name if several else None),
                prompt=given if isinstance(given, str) else json.dumps(given),
                template="none" if isinstance(given, str) else "tokens",
                dimensions=self.dimensions or 0,
                **self.job_options,
            )
            for place, given in enumerate(inputs)
        ]


class EmbeddingJob(JobRequest):
    """A job that computes the embedding of one prompt."""

    cuts_max_tokens: ClassVar = True

    max_tokens: int | None = Field(default=0, ge=0)
    request_id: str | None = None
    dimensions: int = 0

    @property
    def dimensions_wanted(self) -> int:
        """The request's number of dimensions."""
        return self.dimensions

    @property
    def part_of(self) -> str | None:
        """The request's name, if it has several inputs."""
        return self.request_id

    @property
    def stored(self) -> bool:
        """False: an embedding job has no output to retrieve."""
        return False
