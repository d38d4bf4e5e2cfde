"""Requests of OpenAI's API, and the jobs that are made of them.

Fields that change what is generated and cannot be kept are refused by name; those that change nothing here (`user`,
`store`, `metadata` …) and unknown ones are taken and ignored, as vLLM does.
"""

import dataclasses
import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field

from worker_orcd.api.openai import unsupported
from worker_orcd.api.openai.names import error_style, id_in_header
from worker_orcd.api.openai.output_format import OutputFormat
from worker_orcd.jobs.constraint import Constraint
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import MAX_STOP_CHARS, MAX_STOP_STRINGS, Body, CacheSalt, JobId, JobRequest
from worker_orcd.sampling import SAMPLING_FIELDS, SamplingParams, sampling_of
from worker_orcd.tool_calls.formats import Marks

MAX_CHOICES = 16
"""`n`, and prompts of one request times `n`."""

StopRequest = str | list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]]


class StreamOptions(Body):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


def _with_null(schema: dict[str, Any]) -> None:
    """Describe that a sampling field may be null, too."""
    for name in SAMPLING_FIELDS:
        described = schema["properties"][name]
        if "anyOf" not in described:
            kept = {
                key: described.pop(key) for key in ("title", "default", "description") if key in described
            }
            schema["properties"][name] = {"anyOf": [described, {"type": "null"}], **kept}


class JobOptions(Body):
    """Options that jobs of all kinds have, whatever they compute."""

    timeout_ms: int | None = Field(default=None, ge=1, description="as in `POST /execute`")
    group: JobId | None = Field(default=None, description="as in `POST /execute`")
    priority: int = Field(default=0, ge=-(2**31), le=2**31 - 1, description="as in `POST /execute`")
    cache_prompt: bool | None = Field(default=None, description="as in `POST /execute`")
    cache_salt: CacheSalt | None = Field(default=None, description="as in `POST /execute`")

    @property
    def job_options(self) -> dict[str, Any]:
        """These, as a job has them, but its group, which is the request's own if none is given."""
        return {
            "timeout_ms": self.timeout_ms,
            "priority": self.priority,
            "cache_prompt": self.cache_prompt is not False,
            "cache_salt": self.cache_salt,
        }


class Generation(JobOptions, SamplingParams):
    """Options of generation that all requests share. A sampling field that is null counts as left out."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_with_null)

    refused: ClassVar[unsupported.Fields] = {}
    """Fields that cannot be kept."""
    other_names: ClassVar[dict[str, str]] = {"repeat_penalty": "repetition_penalty"}
    """llama-server's names of fields that mean the same here; there, -1 is off."""

    model: str | None = Field(default=None, description="as in `GET /v1/models`")
    stream: bool | None = None
    top_k: int = Field(default=0, ge=-1, le=2**31 - 1, description="0 and -1 are off")
    seed: int | None = Field(
        default=None, ge=-(2**63), le=2**64 - 1, description="a negative one is taken modulo 2^64"
    )
    supersedes: JobId | None = Field(
        default=None, description="as in `POST /execute`; or the header `X-Supersedes`"
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        given = unsupported.object_in(raw)
        if given is None:
            return super().parse(raw)
        cls.refuse(given)
        used = {
            theirs: ours for theirs, ours in cls.other_names.items() if given.get(theirs) not in (None, -1)
        }
        renamed = {ours: given[theirs] for theirs, ours in used.items() if given.get(ours) is None}
        if renamed or any(name in given and given[name] is None for name in SAMPLING_FIELDS):
            kept = {name: value for name, value in given.items() if value is not None}
            raw = json.dumps(kept | renamed).encode()
        with error_style({ours: theirs for theirs, ours in used.items() if ours in renamed}):
            return super().parse(raw)

    def superseding(self, key: str | None) -> Self:
        """This request with the key of its `X-Supersedes` header, if it has one and its body has none.

        Raises:
            JobError: `INVALID_REQUEST`, the header is not a key.
        """
        if key is None or self.supersedes is not None:
            return self
        return self.model_copy(update={"supersedes": id_in_header("X-Supersedes", key)})

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields by name, before the body's types are checked.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        unsupported.refuse_unsupported(given, cls.refused)

    @property
    def reports_progress(self) -> bool:
        """Whether its jobs report the progress of their prompts."""
        return False

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens are wanted with each token; None: not even its own log probability."""
        return self.logprobs

    def job(self, job_id: str, group: str | None, *, place: int = 0, **more: Any) -> "OpenAIJob":
        """The job of this request's choice number `place`, which has the seed plus its place."""
        seed = None if self.seed is None else (self.seed + place) % 2**64
        sampling = sampling_of(self, top_k=max(0, self.top_k), seed=seed, logprobs=self.wanted_logprobs)
        return OpenAIJob.of(
            job_id=job_id,
            group=self.group or group,
            **dataclasses.asdict(sampling),
            **self.job_options,
            supersedes=self.supersedes,
            progress=self.reports_progress,
            **more,
        )


class Completions(Generation, OutputFormat):
    """What `POST /v1/completions` and `POST /v1/chat/completions` have in common."""

    other_names: ClassVar = Generation.other_names | {"n_predict": "max_tokens"}

    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="choices, each a job of one group")
    stop: StopRequest | None = Field(default=None, max_length=MAX_STOP_CHARS)
    max_tokens: int | None = Field(
        default=None, ge=0, description="with 0 the prompt is computed for later requests"
    )
    stream_options: StreamOptions | None = None
    return_progress: bool | None = Field(
        default=None,
        description="chunks with `prompt_progress` while the prompt is computed, as of llama-server",
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the field at fault.
        """
        wanted = super().parse(raw)
        if wanted.stream_options is not None and not wanted.stream:
            raise invalid("stream_options can only be given with stream", "stream_options")
        if isinstance(wanted.stop, list) and len(wanted.stop) > MAX_STOP_STRINGS:
            raise invalid(f"stop may have at most {MAX_STOP_STRINGS} strings", "stop")
        return wanted

    @property
    def names(self) -> dict[str, str]:
        """What this request calls a job's fields, where the names differ."""
        return self.constraint_names

    def wanted(self, name: str) -> list[JobRequest]:
        """Its jobs, the first of which has this name."""
        raise NotImplementedError

    @property
    def echoed(self) -> list[str | None]:
        """What the answers begin with, if a completion asks for it."""
        return []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def constraint_names(self) -> dict[str, str]:
        """The field that constrains the output, for what a job calls it."""
        constraint = self.constraint
        return {} if constraint is None else dict.fromkeys(("json_schema", "grammar"), constraint[0])

    @property
    def reports_progress(self) -> bool:
        """Whether a stream reports the progress of its prompts."""
        return bool(self.stream and self.return_progress)

    def jobs(self, name: str, prompts: list[str], **more: Any) -> list[JobRequest]:
        """One job for each choice of each prompt.

        Siblings are of one group. The first has the request's own name: stopping it ends the request, and with that
        the others, also when the cancel came before the request.

        Raises:
            JobError: `INVALID_REQUEST`, they would be too many.
        """
        number = len(prompts) * (self.n or 1)
        if number > MAX_CHOICES:
            raise invalid(f"a request may have at most {MAX_CHOICES} choices, not {number}", "n")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        constraint = self.constraint
        return [
            self.job(
                f"{name}.{place}" if place else name,
                name if number > 1 else None,
                prompt=prompts[place // (self.n or 1)],
                stop=tuple(text for text in stop or () if text),
                place=place,
                constrained=constraint and constraint[1],
                **more,
            )
            for place in range(number)
        ]


class OpenAIJob(JobRequest):
    """A job that was asked for in OpenAI's words."""

    cuts_max_tokens: ClassVar = True

    max_tokens: int | None = Field(default=None, ge=0)
    prompt_logprobs: int | None = None
    constrained: Constraint | None = None
    marks: Marks = "none"

    @property
    def shown_marks(self) -> Marks:
        """As its output is parsed."""
        return self.marks

    @property
    def scored_prompt(self) -> int | None:
        """As an echo wants it."""
        return self.prompt_logprobs

    @property
    def constraint(self) -> Constraint | None:
        """What the output must be."""
        return self.constrained

    def without_prompt(self) -> Self:
        """This request, as far as it is kept when its job has ended."""
        return super().without_prompt().model_copy(update={"constrained": None})
