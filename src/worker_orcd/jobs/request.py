"""Requests: the bodies of `POST /execute` and `POST /cancel`, and their checks."""

import json
import secrets
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from worker_orcd.jobs.constraint import MAX_CHARS, Constraint
from worker_orcd.jobs.errors import JobError, invalid
from worker_orcd.sampling import SamplingParams, sampling_of
from worker_orcd.tool_calls.formats import Marks

JobId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9._:\-]+$",
        description="1-256 characters of `A-Z a-z 0-9 . _ : -`",
        examples=["test-123"],
    ),
]

CacheSalt = Annotated[str, Field(min_length=1, max_length=256)]

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 32
"""The most tokens of one stop string in the model's tokenization, which only the engine can count."""
MAX_STOP_CHARS = 4096
_ARRAYS = frozenset({"list", "tuple", "set", "frozenset"})
_MAX_FAULTS = 1000
"""Objects have no bound: of each of their keys pydantic says what is wrong with it, in about 2 µs."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Limits of each job: output tokens, prompt characters, seconds. None: what fits the context."""

    max_tokens_out: int | None = None
    max_prompt_chars: int | None = None
    inference_timeout_sec: float = 300.0


def _fail_fast(schema: Any) -> None:
    """Change a schema, and all within it."""
    if isinstance(schema, dict):
        kind = schema.get("type")  # Where these are the fields of a model, one may have this name.
        if isinstance(kind, str) and kind in _ARRAYS:
            schema["fail_fast"] = True
        schema = schema.values()
    elif not isinstance(schema, list | tuple):
        return
    for part in schema:
        _fail_fast(part)


class Body(BaseModel):
    """A JSON body. Types are not coerced and unknown fields are refused by name."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="null"
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have arrays refused at their first fault: half a million of them in one body would take seconds."""
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body, whatever its Content-Type.

        Raises:
            JobError: `INVALID_REQUEST` naming the first faulty field.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            if error.error_count() > _MAX_FAULTS:
                raise cls._refusal_of_many(raw) from None
            raise _refusal(error) from None

    @classmethod
    def _refusal_of_many(cls, raw: bytes) -> JobError:
        known = {one.alias or name for name, one in cls.model_fields.items()}
        unknown = next((key for key in json.loads(raw) if key not in known), None)
        if unknown is None or cls.model_config.get("extra") != "forbid":
            return invalid(f"the body has more than {_MAX_FAULTS} faults")
        return invalid(f"unknown field {unknown[:64]!r}", unknown[:64])

    @classmethod
    def of(cls, **fields: object) -> Self:
        """Make a body from these values, with the same checks.

        Raises:
            JobError: `INVALID_REQUEST` naming the first faulty field.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _refusal(error) from None


class JobRequest(Body, SamplingParams):
    """One inference job of any API. Its sampling fields are those of `SamplingParams`."""

    cuts_max_tokens: ClassVar[bool] = False
    """Whether `max_tokens` is reduced to what fits, instead of refused: on `/v1`, where clients send defaults."""

    job_id: JobId
    prompt: str = Field(
        min_length=1,
        description="the text to continue; at most what fits the context, and `--max-prompt-chars` characters",
    )
    template: Literal["auto", "none", "messages", "tokens", "infill"] = Field(
        default="auto",
        description="as `Template` in the protocol",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="the most tokens to generate; default: what fits after the prompt, and `--max-tokens-out`",
    )
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)], ...] = Field(
        default=(),
        max_length=MAX_STOP_STRINGS,
        strict=False,
        description=f"strings before which the text ends; at most {MAX_STOP_TOKENS} tokens each",
    )
    json_schema: dict[str, Any] | bool | None = Field(
        default=None,
        description="the output is JSON that this JSON Schema allows; keywords that cannot be enforced are refused",
    )
    grammar: str | None = Field(
        default=None,
        min_length=1,
        description=f"the output is what this grammar allows, in GBNF (llama.cpp's notation); at most {MAX_CHARS} "
        "characters; cannot be combined with `json_schema`",
    )
    progress: bool = Field(
        default=False,
        description="`progress` events while the prompt is computed, at most 4 a second",
    )
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        description="this job's own time limit in ms, queueing included; at most the worker's",
    )
    on_disconnect: Literal["cancel", "continue"] = Field(
        default="cancel",
        description="when this request's connection is closed and nobody else reads the job: it is cancelled, or "
        "continues and its stream can be resumed",
    )
    group: JobId | None = Field(default=None, description="jobs of one group can be cancelled together")
    priority: int = Field(
        default=0,
        ge=-(2**31),
        le=2**31 - 1,
        description="lower priorities run first, and may preempt running jobs with higher ones, which continue later",
    )
    supersedes: JobId | None = Field(
        default=None,
        description="a key: live jobs with the same key are stopped with reason `superseded`, and this job starts from "
        "what they computed",
    )
    cache_prompt: bool = Field(
        default=True,
        description="`false`: the job reuses no computed prefix, and leaves none for later jobs",
    )
    cache_salt: CacheSalt | None = Field(
        default=None,
        description="computed prefixes are shared only by jobs with the same API key and the same salt",
    )

    @property
    def text(self) -> str:
        """The text that the client sent: the prompt, or the concatenated contents of all messages or files.

        Only the engine can turn token ids into text, so they count in their JSON form.
        """
        if self.template not in ("messages", "infill"):
            return self.prompt
        given = json.loads(self.prompt)
        if self.template == "infill":
            files = [chunk["filename"] + chunk["text"] for chunk in given["extra"] or ()]
            return "".join((*files, given["prefix"], given["suffix"], given["prompt"]))
        if isinstance(given, list):
            return "".join(message["content"] for message in given)
        return "".join(message["content"] for message in given["messages"]) + json.dumps(given["tools"])

    @property
    def shown_marks(self) -> Marks:
        """Which control tokens are part of the text."""
        return "none"

    @property
    def constraint(self) -> Constraint | None:
        """The constraint of the output.

        Raises:
            JobError: `INVALID_REQUEST`: there are two constraints, or one is out of bounds.
        """
        if self.json_schema is not None and self.grammar is not None:
            raise invalid("json_schema and grammar cannot be combined", "grammar")
        if self.grammar is not None:
            return Constraint.grammar(self.grammar, "grammar")
        return None if self.json_schema is None else Constraint.json_schema(self.json_schema, "json_schema")

    def within(self, ceilings: Ceilings) -> Self:
        """This request, checked against the worker's ceilings.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        if ceilings.max_prompt_chars is not None and len(self.text) > ceilings.max_prompt_chars:
            raise invalid(
                f"prompt has {len(self.text)} characters, at most {ceilings.max_prompt_chars} are allowed",
                "prompt",
            )
        constraint = self.constraint  # Raises if the constraint is invalid.
        fault = self.infill_fault
        if fault is None and constraint is not None and "infill" in (self.samplers or ()):
            fault = "infill may end the output early, so it cannot be combined with a grammar or a schema"
        if fault is not None:
            raise invalid(f"samplers: {fault}", "samplers")
        too_many = None not in (self.max_tokens, ceilings.max_tokens_out) and (
            (self.max_tokens or 0) > (ceilings.max_tokens_out or 0)
        )
        if too_many and not self.cuts_max_tokens:
            raise invalid(
                f"max_tokens is {self.max_tokens}, at most {ceilings.max_tokens_out} is allowed",
                "max_tokens",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise invalid(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})", "min_tokens"
            )
        return self

    def timeout_within(self, ceilings: Ceilings) -> float:
        """The job's time limit in seconds from acceptance: its own, or the worker's if that is shorter."""
        if self.timeout_ms is None:
            return ceilings.inference_timeout_sec
        # Compare before dividing, because a whole number may be too large for a float.
        return min(self.timeout_ms, ceilings.inference_timeout_sec * 1000) / 1000

    def without_prompt(self) -> Self:
        """The part of this request that is kept when its job has ended."""
        nothing = {"stop": (), "logit_bias": None, "stop_token_ids": (), "json_schema": None, "grammar": None}
        return self.model_copy(update={"prompt": "", **nothing})

    @property
    def stored(self) -> bool:
        """Whether other requests than this one may read the job's events."""
        return True

    @property
    def kept_bytes(self) -> int:
        """Bytes of this request that are kept when its job has ended, without a constant."""
        return 0

    @property
    def scored_prompt(self) -> int | None:
        """Number of most likely tokens to report with each prompt token; None: prompt tokens are not scored."""
        return None

    @property
    def part_of(self) -> str | None:
        """The id of the request that this job is a part of. A cancel of that id stops all parts."""
        return None

    @property
    def dimensions_wanted(self) -> int | None:
        """Number of dimensions if the job computes the prompt's embedding instead of text; 0: all."""
        return None

    def sampling(self, seed: int) -> SamplingParams:
        """The sampling parameters with the job's seed."""
        return sampling_of(self, seed=seed)

    def seed_or_drawn(self) -> int:
        """The seed to use: the client's, or a new random one."""
        return secrets.randbits(64) if self.seed is None else self.seed


class ExecuteRequest(JobRequest):
    """The body of `POST /execute`."""

    template: Literal["auto", "none"] = Field(
        default="auto",
        description="`auto`: the prompt as one user message in the model's chat template, without parsing special "
        "tokens in it; `none`: the unchanged prompt",
    )


class CancelRequest(Body):
    """Stop the job with this id, or the live jobs of this group, in any state.

    Unknown fields are ignored, because a cancel must not fail for them.
    """

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "oneOf": [
                {
                    "required": [named],
                    "properties": {named: {"type": "string"}, other: {"type": "null"}},
                }
                for named, other in (("job_id", "group"), ("group", "job_id"))
            ]
        },
    )

    job_id: JobId | None = None
    group: JobId | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a body, which must have exactly one of the two fields.

        Raises:
            JobError: `INVALID_REQUEST` naming the faulty field.
        """
        request = super().parse(raw)
        if request.job_id is not None and request.group is not None:
            raise invalid("job_id and group cannot be combined", "group")
        if request.job_id is None and request.group is None:
            raise invalid("job_id is required", "job_id")
        return request

    def answer(self) -> dict[str, str]:
        """The body of every 202."""
        named = {"job_id": self.job_id} if self.job_id is not None else {"group": self.group or ""}
        return {"status": "cancelling", **named}


def _refusal(error: ValidationError) -> JobError:
    """The first fault of a body, as one sentence with the field's name."""
    problems = error.errors(include_url=False, include_input=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = problem["loc"]
    param = str(where[0])[:64] if where else None
    field_path = ".".join(str(part) for part in where)[:64]
    kind = problem["type"]
    if kind == "json_invalid":
        return invalid("the body is not valid JSON")
    if kind in ("model_type", "model_attributes_type") and not where:
        return invalid("the body must be a JSON object")
    if kind == "missing":
        return invalid(f"{field_path} is required", param)
    if kind == "extra_forbidden":
        return invalid(f"unknown field {field_path!r}", param)
    if kind == "string_pattern_mismatch":
        return invalid(f"{field_path} may only have characters of A-Z a-z 0-9 . _ : -", param)
    context: dict[str, Any] = problem.get("ctx") or {}
    if kind == "value_error":
        return invalid(f"{field_path}: {context.get('error', problem['msg'])}", param)
    return invalid(f"{field_path}: {problem['msg'][:1].lower()}{problem['msg'][1:]}", param)
