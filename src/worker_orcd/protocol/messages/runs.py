"""A run: preparing it, beginning it, stopping it, and what the engine answers.

`run` is the front's number for one use of a job id. An engine never sees job ids as identities: `job_id`,
`correlation_id` and `owner` travel along for narration only.
"""

from typing import Literal

import msgspec

from worker_orcd.protocol.messages.message import Message
from worker_orcd.sampling import SamplingParams
from worker_orcd.tool_calls.formats import Marks

Template = Literal["auto", "none", "plain", "messages", "tokens", "infill"]
"""What a prompt is.

- `auto`: one user message for the model's chat template.
- `none`: raw text.
- `plain`: raw text, without the tokens that the model adds.
- `messages`: a conversation for the chat template: a JSON list of objects with `role` and `content`, or an object with
  such `messages` and `tools`. The last message may have an `end`, `open` or `closed`.
- `tokens`: token ids, a JSON list.
- `infill`: two texts with a gap between them, a JSON object (see `engine/infill.py`).
"""


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What a job's output must be.

    Attributes:
        kind: what `text` is: a JSON Schema, a grammar in GBNF (llama.cpp's notation) or Lark, or a regular expression
            for the whole output.
        text: the schema, grammar or expression.
        lenient: ignore keywords of a JSON Schema that cannot be enforced, instead of refusing them.
    """

    kind: Literal["json_schema", "gbnf", "lark", "regex"]
    text: str
    lenient: bool = False


# Front to engine.


class Submit(Message, frozen=True):
    """Prepare a run: render and tokenize its prompt, and check what only the model can check.

    Answered by `Accepted` or `Rejected`. The engine keeps an accepted run until `Begin`, `Drop` or its own end.

    Attributes:
        prompt: its text; not used if there are `tokens`.
        template: what `prompt` is.
        stop: stop strings: the output ends before the first of them.
        max_stop_tokens: the most tokens that a stop string may have.
        prompt_chars, prompt_sha256: what log events say of the prompt instead of the prompt.
        tokens: the prompt's token ids, if an earlier engine has accepted it; then there is no answer.
        cache: the namespace whose computed prefixes the run uses and adds to; None: it uses none and leaves none.
        prompt_logprobs: report the log probabilities of the prompt's tokens, each with those of this many likeliest
            tokens. All of the prompt is computed then, so `cache` must be None.
        constraint: what the output must be.
        priority: the run may take the slot of a run with a higher priority, if `order` allows.
        order: the run with the lowest order gets a slot first and is preempted last; of equal ones the one with the
            lowest `run`.
        marks: which control tokens are part of the text.
        embed: only the prompt's embedding is wanted, with so many dimensions (0: all); None: text is.
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
    """Forget a `Submit` without `Begin`, or a `Tokenize`. The engine still answers it, if it has not yet."""

    run: int


class Begin(Message, frozen=True):
    """Generate an accepted run, from where `generated` ends, as soon as the scheduler gives it a slot.

    `Started` reports the slot, `Step` the progress. The run ends in a `Step` or by `Stopped`.

    Attributes:
        max_tokens: tokens in all, `generated` included.
        generated: ids of the tokens generated before; numbering and randomness continue from there.
    """

    run: int
    max_tokens: int
    generated: tuple[int, ...] = ()


class Stop(Message, frozen=True):
    """Stop computing this run and free its cells. Always answered by `Stopped`."""

    run: int


# Engine to front.


class Accepted(Message, frozen=True):
    """The run can begin. `prompt`: its prompt's token ids."""

    run: int
    prompt: tuple[int, ...]


class Tokenized(Message, frozen=True):
    """A prompt's token ids, and how each is shown."""

    run: int
    prompt: tuple[int, ...]
    pieces: tuple[bytes, ...]


class Rejected(Message, frozen=True):
    """The prompt cannot be prepared: a client's fault when `param` names a field, otherwise the worker's."""

    run: int
    message: str
    param: str | None


class Rendering(Message, frozen=True):
    """The prompt takes long to render (`slow`), or its rendering is over. In between, the engine waits for a process
    that has limits of its own, so it is not stuck."""

    run: int
    slow: bool


class Started(Message, frozen=True):
    """The run gets a slot, after `Begin` or a preemption. Sent before the engine computes for the run, so that the
    front knows which runs may have killed an engine."""

    run: int


class Stopped(Message, frozen=True):
    """The run is stopped and holds no cells (also if it was unknown or had ended).

    Ages instead of times, so that two machines' clocks need not agree.

    Attributes:
        stopped_ago_ms: how long ago computing ended, when this was sent.
        freed_ago_ms: how long ago its cells were freed, when this was sent; None: they cannot be freed.
        cells_before, cells_after: KV cells that it held and holds, by the engine's own count.
        prompt_processed: prompt tokens in KV cells when it was stopped.
        cells_used, sequences_used, cells_cached: as in `Step`, after it.
        cells_warm: of its cells, or those that it had when it was preempted, how many a later run need not compute.
        prompt_cached: of the prompt tokens processed, how many were in KV cells already when the run began.
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
