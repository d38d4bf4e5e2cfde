"""Messages about runs: prepare, begin and stop them, and the engine's answers.

`run` is the front's number for one use of a job id, and the only identity for the engine: `job_id`, `correlation_id`
and `owner` are only for log events.
"""

from typing import Literal

import msgspec

from worker_orcd.protocol.messages.message import Message
from worker_orcd.sampling import SamplingParams
from worker_orcd.tool_calls.formats import Marks, ToolFormat

Template = Literal["auto", "none", "plain", "messages", "tokens", "infill"]
"""The form of a prompt.

- `auto`: one user message for the model's chat template.
- `none`: raw text.
- `plain`: raw text, without the tokens that the model adds at its beginning and end.
- `messages`: a conversation for the chat template: a JSON list of objects with `role` and `content`, or an object with
  such `messages` and `tools`. The last message may have an `end`, `open` or `closed`.
- `tokens`: token ids, a JSON list.
- `infill`: two texts with a gap between them, as a JSON object (see `engine/infill.py`).
"""


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """A constraint of a job's output.

    Attributes:
        kind: what `text` is: a JSON Schema, a grammar in GBNF (llama.cpp's notation) or Lark, or a regular expression
            for the whole output, or the tools that may be called (`tool_calls/offer.py`).
        text: the schema, grammar, expression or tools.
        lenient: ignore keywords of a JSON Schema that cannot be enforced, instead of refusing them.
        formats: how the model writes tool calls; empty: unknown.
    """

    kind: Literal["json_schema", "gbnf", "lark", "regex", "tools"]
    text: str
    lenient: bool = False
    formats: tuple[ToolFormat, ...] = ()


# Front to engine.


class Submit(Message, frozen=True):
    """Prepare a run: render and tokenize its prompt, and make the checks that need the model.

    Answered by `Accepted` or `Rejected`. The engine keeps an accepted run until `Begin`, `Drop` or its own end.

    Attributes:
        prompt: its text. Not used with `tokens`.
        template: what `prompt` is.
        stop: stop strings: the output ends before the first of them.
        max_stop_tokens: the most tokens that a stop string may have.
        prompt_chars, prompt_sha256: the prompt's length and hash, for log events.
        tokens: the prompt's token ids, if an earlier engine has accepted it; then there is no answer.
        cache: the namespace whose computed prefixes the run uses and extends; None: it uses none and leaves none.
        prompt_logprobs: report the log probabilities of the prompt's tokens, each with this many most likely tokens.
            The whole prompt is computed then, so `cache` must be None.
        constraint: the constraint of the output.
        priority: the run may take the slot of a run with a higher priority, if `order` allows.
        order: the run with the lowest order gets a slot first and is preempted last; among equal ones, the run with the
            lowest `run`.
        marks: which control tokens are part of the text.
        embed: compute only the prompt's embedding, with this many dimensions (0: all); None: generate text.
    """

    run: int
    job_id: str
    correlation_id: str
    prompt: str
    template: Template
    stop: tuple[str, ...]
    max_stop_tokens: int
    sampling: SamplingParams
    prompt_chars: int
    prompt_sha256: str
    owner: str = ""
    tokens: tuple[int, ...] | None = None
    cache: str | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    priority: int = 0
    order: float = 0.0
    marks: Marks = "none"
    embed: int | None = None


class Tokenize(Message, frozen=True):
    """Render and tokenize a prompt that belongs to no run. Answered by `Tokenized` or `Rejected`."""

    run: int
    correlation_id: str
    prompt: str
    template: Template
    owner: str = ""


class Drop(Message, frozen=True):
    """Drop a `Submit` without `Begin`, or a `Tokenize`. The engine still answers it, if it has not done so."""

    run: int


class Begin(Message, frozen=True):
    """Generate an accepted run, continuing after `generated`, as soon as the scheduler gives it a slot.

    `Started` reports the slot, `Step` the progress. The run ends in a `Step` or by `Stopped`.

    Attributes:
        max_tokens: the most tokens in all, `generated` included.
        generated: ids of the tokens generated before. Their numbers and random draws continue from there.
    """

    run: int
    max_tokens: int
    generated: tuple[int, ...] = ()


class Stop(Message, frozen=True):
    """Stop computing this run and free its cells. Always answered by `Stopped`."""

    run: int


# Engine to front.


class Accepted(Message, frozen=True):
    """The run can begin. `prompt`: the prompt's token ids."""

    run: int
    prompt: tuple[int, ...]


class Tokenized(Message, frozen=True):
    """A prompt's token ids, and the bytes that show each token."""

    run: int
    prompt: tuple[int, ...]
    pieces: tuple[bytes, ...]


class Rejected(Message, frozen=True):
    """The prompt cannot be prepared. The fault is the client's if `param` names a field, otherwise the worker's."""

    run: int
    message: str
    param: str | None


class Rendering(Message, frozen=True):
    """The prompt renders slowly (`slow`), or its rendering is over. In between, the engine waits for a process with
    limits of its own, so it is not stuck."""

    run: int
    slow: bool


class Started(Message, frozen=True):
    """The run gets a slot, after `Begin` or a preemption. Sent before the engine computes for the run, so that the
    front knows which runs may have killed an engine."""

    run: int


class Stopped(Message, frozen=True):
    """The run is stopped and holds no cells (also if it was unknown or had ended).

    Contains ages instead of times, because the clocks of two machines may differ.

    Attributes:
        stopped_ago_ms: time from the end of computing to the sending of this message.
        freed_ago_ms: time from the freeing of its cells to the sending of this message; None: they cannot be freed.
        cells_before, cells_after: KV cells that it held before and holds now, by the engine's own count.
        prompt_processed: prompt tokens in KV cells when it was stopped.
        cells_used, sequences_used, cells_cached: as in `Step`, after it.
        cells_warm: how many of its cells, or of those that it had when it was preempted, later runs can reuse.
        prompt_cached: how many of the processed prompt tokens were reused instead of computed.
    """

    run: int
    stopped_ago_ms: float
    freed_ago_ms: float | None
    cells_before: int
    cells_after: int
    prompt_processed: int
    cells_used: int
    sequences_used: int
    cells_cached: int = 0
    cells_warm: int = 0
    prompt_cached: int = 0
