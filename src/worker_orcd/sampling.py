"""Sampling parameters: one type from the request to the sampler.

`JobRequest` and the requests of OpenAI's API inherit the fields, `Submit` passes them to the engine, and
`engine/sampler.py` uses them. A new field needs no other place in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, MaxLen

MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_SAMPLERS = 16
MAX_INFILL_CANDIDATES = 100
"""The sampler `infill` compares all candidates with each other. For a whole vocabulary this takes minutes per token."""
MIN_LOGPROB = -9999.0
"""vLLM's value for minus infinity, which JSON does not have."""
PENALTY_WINDOW = 64
"""Number of latest tokens to which penalties apply, prompt included."""

SamplerName = Literal[
    "penalties", "top_k", "top_p", "min_p", "temperature", "infill", "dry", "top_n_sigma", "typ_p", "xtc"
]
"""llama-server's names of samplers. The last four are accepted but have no effect, because the options that would
enable them are refused."""
SAMPLERS: tuple[SamplerName, ...] = ("penalties", "top_k", "top_p", "min_p", "temperature")
"""The default samplers, in the documented order, which is also llama-server's."""


@dataclass(frozen=True, slots=True)
class Doc:
    """A field's description for JSON Schema, OpenAPI and the reference. `rules`: further JSON Schema keywords."""

    text: str
    rules: dict[str, Any] = field(default_factory=dict)

    def __get_pydantic_json_schema__(
        self, core_schema: Any, schema_of: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        return {**schema_of(core_schema), **self.rules, "description": self.text}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. By default, all filters and penalties are off."""

    temperature: Annotated[float, Ge(0.0), Le(2.0), Doc("0 is greedy")] = 1.0
    top_p: Annotated[float, Ge(0.0), Le(1.0), Doc("1 is off")] = 1.0
    top_k: Annotated[int, Ge(0), Le(2**31 - 1), Doc("0 is off; at most the vocabulary")] = 0
    min_p: Annotated[
        float,
        Ge(0.0),
        Le(1.0),
        Doc("0 is off; tokens less likely than this times the most likely one are left out"),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Gt(0.0),
        Le(2.0),
        Doc("1 is off; exactly 0 is refused; applies to the last 64 tokens, prompt included"),
    ] = 1.0
    presence_penalty: Annotated[
        float,
        Ge(-2.0),
        Le(2.0),
        Doc("0 is off; subtracted from each token among the last 64, prompt included"),
    ] = 0.0
    frequency_penalty: Annotated[
        float, Ge(-2.0), Le(2.0), Doc("0 is off; subtracted for each time that a token is among the last 64")
    ] = 0.0
    logit_bias: Annotated[
        dict[Annotated[int, Ge(0), Le(2**31 - 1)], Annotated[float, Ge(-100.0), Le(100.0)]] | None,
        MaxLen(MAX_LOGIT_BIASES),
        Doc(
            "token ids, and values that are first added to their logits",
            {"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"}},
        ),
    ] = None
    seed: Annotated[
        int | None,
        Ge(0),
        Le(2**64 - 1),
        Doc("unsigned 64-bit; default: random, and reported in `started`"),
    ] = None
    """Never None in a run."""
    ignore_eos: Annotated[bool, Doc("continue past end-of-generation tokens")] = False
    min_tokens: Annotated[
        int,
        Ge(0),
        Le(2**31 - 1),
        Doc("until this many tokens, neither end-of-generation tokens nor `stop_token_ids` are drawn"),
    ] = 0
    stop_token_ids: Annotated[
        tuple[Annotated[int, Ge(0), Le(2**31 - 1)], ...],
        MaxLen(MAX_STOP_TOKEN_IDS),
        Doc("tokens that end the output like an end-of-generation token, also with `ignore_eos`"),
    ] = ()
    samplers: Annotated[
        tuple[SamplerName, ...] | None,
        MaxLen(MAX_SAMPLERS),
        Doc(
            f"only these samplers, in this order; default: {', '.join(SAMPLERS)}. `infill` ends the output where the "
            f"model is unsure; it requires `top_k` before it, of at most {MAX_INFILL_CANDIDATES}"
        ),
    ] = None
    n_indent: Annotated[
        int,
        Ge(0),
        Le(2**31 - 1),
        Doc("0 is off; the output ends where a line after the first begins with fewer spaces and tabs"),
    ] = 0
    t_max_predict_ms: Annotated[
        int,
        Ge(-1),
        Le(2**31 - 1),
        Doc(
            "0 and -1 are off; the output ends with the first line break more than this many milliseconds after the "
            "first token"
        ),
    ] = 0
    logprobs: Annotated[
        int | None,
        Ge(0),
        Le(MAX_LOGPROBS),
        Doc(
            "with each token, its log probability and those of this many most likely tokens, from the raw logits: "
            "before bias, penalties and filters"
        ),
    ] = None

    @property
    def infill_fault(self) -> str | None:
        """Why the request's sampler `infill` cannot be used; None if it can, or is not requested."""
        names = self.samplers or ()
        if "infill" not in names:
            return None
        filtered = "top_k" in names[: names.index("infill")]
        if not filtered or not 0 < self.top_k <= MAX_INFILL_CANDIDATES:
            return f"infill requires top_k before it, with a top_k of 1 to {MAX_INFILL_CANDIDATES}"
        return (
            "infill may end the output early, so it cannot be combined with min_tokens"
            if self.min_tokens
            else None
        )

    def beyond(self, vocabulary: int) -> Iterator[tuple[str, str]]:
        """The fields that are invalid for a vocabulary of this size, each with the reason."""
        if self.top_k > vocabulary:
            yield "top_k", f"top_k is {self.top_k}, the vocabulary has {vocabulary} tokens"
        for name, tokens in (("logit_bias", self.logit_bias or ()), ("stop_token_ids", self.stop_token_ids)):
            if tokens and max(tokens) >= vocabulary:
                yield name, f"{name} has token {max(tokens)}, the vocabulary has {vocabulary} tokens"


class TokenLogprob(NamedTuple):
    """The log probability of a token at one position. `piece`: its bytes; for a control token, its name."""

    token: int
    piece: bytes
    logprob: float | None
    """None for the first token, which nothing precedes."""

    @property
    def text(self) -> str:
        """The token's text."""
        return shown(self.piece)

    def data(self) -> dict[str, object]:
        """The JSON object in OpenAI's format, with the token's id."""
        return {
            "id": self.token,
            "token": self.text,
            "bytes": list(self.piece),
            "logprob": self.logprob,
        }


def shown(piece: bytes) -> str:
    """A token's text. Bytes that are not whole characters are written in OpenAI's format."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


Logprobs = tuple[TokenLogprob, ...]
"""Log probabilities at one position: the token's, then those of the most likely tokens in order. Empty: not
requested."""


def logprobs_data(logprobs: Logprobs) -> dict[str, object]:
    """The JSON object of log probabilities at one position."""
    return {**logprobs[0].data(), "top_logprobs": [one.data() for one in logprobs[1:]]}


SAMPLING_FIELDS: tuple[str, ...] = tuple(one.name for one in fields(SamplingParams))
"""The names of the sampling parameters, in order."""


def sampling_of(holder: SamplingParams, **changed: Any) -> SamplingParams:
    """The parameters of an object that inherits them, such as a request, with these changes."""
    return SamplingParams(**{name: getattr(holder, name) for name in SAMPLING_FIELDS} | changed)
