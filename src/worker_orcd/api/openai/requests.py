"""Requests of OpenAI's API, and the jobs made from them.

Unsupported fields that would change the output are refused by name. Fields without effect here (`user`, `store`,
`metadata` …) and unknown fields are ignored, as in vLLM.
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
"""The most choices of a request: `n` times the number of prompts."""
WHAT_FITS = "-1 and -2: what fits, as in llama-server and Ollama"
TokenLimit = Annotated[int, Field(ge=-2)]
"""A `max_tokens`. Negative ones are no limit."""

StopRequest = str | list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]]


class StreamOptions(Body):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


def _with_null(schema: dict[str, Any]) -> None:
    """Describe in the schema that a sampling field may also be null."""
    for name in SAMPLING_FIELDS:
        described = schema["properties"][name]
        if "anyOf" not in described:
            kept = {
                key: described.pop(key) for key in ("title", "default", "description") if key in described
            }
            schema["properties"][name] = {"anyOf": [described, {"type": "null"}], **kept}


def limit(max_tokens: int | None) -> int | None:
    """The most tokens that a job may generate. None: what fits."""
    return None if max_tokens is None or max_tokens < 0 else max_tokens


class JobOptions(Body):
    """Options of jobs of all kinds."""

    timeout_ms: int | None = Field(default=None, ge=1, description="as in `POST /execute`")
    group: JobId | None = Field(default=None, description="as in `POST /execute`")
    priority: int = Field(default=0, ge=-(2**31), le=2**31 - 1, description="as in `POST /execute`")
    cache_prompt: bool | None = Field(default=None, description="as in `POST /execute`")
    cache_salt: CacheSalt | None = Field(default=None, description="as in `POST /execute`")

    @property
    def job_options(self) -> dict[str, Any]:
        """These options as fields of a job, without the group, whose default is the request's own group."""
        return {
            "timeout_ms": self.timeout_ms,
            "priority": self.priority,
            "cache_prompt": self.cache_prompt is not False,
            "cache_salt": self.cache_salt,
        }


class Generation(JobOptions, SamplingParams):
    """Options of generation that all requests share. A sampling field with null counts as left out."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_with_null)

    refused: ClassVar[unsupported.Fields] = {}
    """Unsupported fields, which are refused."""
    other_names: ClassVar[dict[str, str]] = {"repeat_penalty": "repetition_penalty"}
    """llama-server's names of fields that mean the same here. Of sampling fields, -1 is off."""

    model: str | None = Field(default=None, description="as in `GET /v1/models`")
    stream: bool | None = None
    top_k: int = Field(default=0, ge=-1, le=2**31 - 1, description="0 and -1 are off")
    seed: int | None = Field(
        default=None, ge=-(2**63), le=2**64 - 1, description="negative values are taken modulo 2^64"
    )
    supersedes: JobId | None = Field(
        default=None, description="as in `POST /execute`; or the header `X-Supersedes`"
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        given = unsupported.object_in(raw)
        if given is None:
            return super().parse(raw)
        cls.refuse(given)
        used = {
            theirs: ours
            for theirs, ours in cls.other_names.items()
            if given.get(theirs) is not None and not (ours in SAMPLING_FIELDS and given[theirs] == -1)
        }
        renamed = {ours: given[theirs] for theirs, ours in used.items() if given.get(ours) is None}
        if renamed or any(name in given and given[name] is None for name in SAMPLING_FIELDS):
            kept = {name: value for name, value in given.items() if value is not None}
            raw = json.dumps(kept | renamed).encode()
        with error_style({ours: theirs for theirs, ours in used.items() if ours in renamed}):
            return super().parse(raw)

    def superseding(self, key: str | None) -> Self:
        """This request with the key of the `X-Supersedes` header, unless the body has a key.

        Raises:
            JobError: `INVALID_REQUEST`: the header is not a key.
        """
        if key is None or self.supersedes is not None:
            return self
        return self.model_copy(update={"supersedes": id_in_header("X-Supersedes", key)})

    @classmethod
    def refuse(cls, given: dict[str, Any]) -> None:
        """Refuse unsupported fields by name, before the body's types are checked.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        unsupported.refuse_unsupported(given, cls.refused)

    @property
    def reports_progress(self) -> bool:
        """Whether the jobs report the progress of their prompts."""
        return False

    @property
    def wanted_logprobs(self) -> int | None:
        """Number of most likely tokens reported with each token; None: no log probabilities at all."""
        return self.logprobs

    def job(self, job_id: str, group: str | None, *, place: int = 0, **more: Any) -> "OpenAIJob":
        """The job of choice number `place`. Its seed is the request's seed plus `place`."""
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
    """The common fields of `POST /v1/completions` and `POST /v1/chat/completions`."""

    other_names: ClassVar = Generation.other_names | {"n_predict": "max_tokens"}

    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="choices, each a job of one group")
    stop: StopRequest | None = Field(default=None, max_length=MAX_STOP_CHARS)
    max_tokens: TokenLimit | None = Field(
        default=None, description=f"with 0 the prompt is computed for later requests; {WHAT_FITS}"
    )
    stream_options: StreamOptions | None = None
    return_progress: bool | None = Field(
        default=None,
        description="chunks with `prompt_progress` while the prompt is computed, as in llama-server",
    )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        wanted = super().parse(raw)
        if wanted.stream_options is not None and not wanted.stream:
            raise invalid("stream_options requires stream", "stream_options")
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
        """By choice, the text with which the response begins, if the request asks for an echo."""
        return []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with `usage`."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def constraint_names(self) -> dict[str, str]:
        """This API's name for the job's field that constrains the output."""
        constraint = self.constraint
        return {} if constraint is None else dict.fromkeys(("json_schema", "grammar"), constraint[0])

    @property
    def reports_progress(self) -> bool:
        """Whether a stream reports the progress of its prompts."""
        return bool(self.stream and self.return_progress)

    def jobs(self, name: str, prompts: list[str], *, max_tokens: int | None, **more: Any) -> list[JobRequest]:
        """One job for each choice of each prompt.

        All jobs of a request have the same group. The first job has the request's own name: stopping it ends the
        request, which stops the others. This also works for a cancel that arrives before the request.

        Raises:
            JobError: `INVALID_REQUEST`: too many choices.
        """
        number = len(prompts) * (self.n or 1)
        if number > MAX_CHOICES:
            raise invalid(f"a request may have at most {MAX_CHOICES} choices, not {number}", "n")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        constraint = self.constraint
        most = limit(max_tokens)
        return [
            self.job(
                f"{name}.{place}" if place else name,
                name if number > 1 else None,
                prompt=prompts[place // (self.n or 1)],
                stop=tuple(text for text in stop or () if text),
                place=place,
                constrained=constraint and constraint[1],
                max_tokens=most,
                **more,
            )
            for place in range(number)
        ]


class OpenAIJob(JobRequest):
    """A job of a request of OpenAI's API."""

    cuts_max_tokens: ClassVar = True

    max_tokens: int | None = Field(default=None, ge=0)
    prompt_logprobs: int | None = None
    constrained: Constraint | None = None
    marks: Marks = "none"

    @property
    def shown_marks(self) -> Marks:
        """The control tokens that the output's parser needs."""
        return self.marks

    @property
    def scored_prompt(self) -> int | None:
        """Number of most likely tokens for each prompt token, if the request asks for an echo with log
        probabilities."""
        return self.prompt_logprobs

    @property
    def constraint(self) -> Constraint | None:
        """The constraint of the output."""
        return self.constrained

    def without_prompt(self) -> Self:
        """The part of this request that is kept when the job has ended."""
        return super().without_prompt().model_copy(update={"constrained": None})
