"""The messages, one closed union for each direction.

`run` is the front's number for one use of a job id. An engine never sees job ids as identities: `job_id`,
`correlation_id` and `owner` travel along for narration only. New fields come last and have defaults.
"""

from typing import Literal

import msgspec

from worker_orcd.sampling import Logprobs, SamplingParams
from worker_orcd.tool_calls.formats import Marks, ToolFormat


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages: immutable, tagged by class name, encoded as arrays."""


Template = Literal["auto", "none", "plain", "messages", "tokens", "infill"]
"""What a prompt is: one user message for the model's chat template, raw text, the same without the tokens that the
model adds, a conversation for that template (a JSON list of objects with `role` and `content`, or an object with such
`messages` and `tools`; the last message may have an `end`, `open` or `closed`), token ids (a JSON list), or two texts
with a gap between them (a JSON object, see `engine/infill.py`)."""


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


class Load(Message, frozen=True):
    """The first message: which model, and how. Answered by `Loading`*, then `Ready` or `LoadFailed`.

    Attributes:
        model_path: a GGUF file.
        gpu_device: put everything on this GPU; None is CPU.
        parallel: sequences decoded together.
        context_length: KV cells for all sequences.
        exact: byte-identical streams whatever runs beside them.
        prefix_cache: whether computed prefixes are kept for later runs.
        self_check: whether to prove exactness before it is ready; one proof holds for the successors on the same
            machine, too.
        model_bytes: the size of the file, or of all parts of a split model.
    """

    model_path: str
    worker_id: str
    gpu_device: int | None
    parallel: int
    context_length: int
    exact: bool
    threads: int
    log_format: Literal["json", "pretty"]
    self_check: bool = True
    prefix_cache: bool = True
    model_bytes: int = 0


class Submit(Message, frozen=True):
    """Prepare a run: render and tokenize its prompt, and check what only the model can check.

    Answered by `Accepted` or `Rejected`. The engine keeps an accepted run until `Begin`, `Drop` or its own end.

    Attributes:
        prompt, template: its text; not used if there are `tokens`.
        tokens: the prompt's token ids, if an earlier engine has accepted it: it is kept without an answer.
        max_stop_tokens: the most tokens that a stop string may have.
        prompt_chars, prompt_sha256: what narration says of the prompt instead of the prompt.
        cache: the namespace whose computed prefixes it uses and adds to; None: it uses none and leaves none.
        prompt_logprobs: report the log probabilities of the prompt's tokens, each with those of so many likeliest
            tokens. All of the prompt is computed then, so `cache` must be None.
        priority: it may take the slot of a run with a higher priority, if `order` allows.
        order: the run with the lowest order gets a slot first and is preempted last; of equal ones the one with the
            lowest `run`. marks: the control tokens that are part of the text.
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


class Tokenize(Message, frozen=True):
    """Render and tokenize a prompt that belongs to no run. Answered by `Tokenized` or `Rejected`."""

    run: int
    correlation_id: str
    prompt: str
    template: Template
    owner: str = ""


class Drop(Message, frozen=True):
    """Forget a `Submit` without `Begin`, or a `Tokenize`. If it is not answered yet, it is answered all the same."""

    run: int


class Begin(Message, frozen=True):
    """Generate an accepted run, from where `generated` ends, as soon as it is its turn.

    `Started` says that it has a slot, `Step` reports it, and it ends there or by `Stopped`.

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


class Ping(Message, frozen=True):
    """A sign of life is requested. Answered by `Pong` between two steps; while the model is loading only if loading has
    made progress since the last `Pong`. `runs` are those that the engine was handed and that have not come back."""

    runs: tuple[int, ...] = ()


ToEngine = Load | Submit | Tokenize | Drop | Begin | Stop | Ping

# Engine to front.

Percent = Literal[0, 25, 50, 75, 100]


class Loading(Message, frozen=True):
    """The model is loaded to so many percent."""

    percent: Percent


class Ready(Message, frozen=True):
    """The engine is ready.

    Attributes:
        device: `cpu`, or the GPU's name.
        resident: whether all weights are where they compute.
        vram_bytes: bytes of device memory in use, 0 on CPU.
        cells: KV cells in all; cells_per_job: the most one job may use.
        exact: whether streams are byte-identical whatever runs beside them, as the self-check found.
        load_ms: time from `Load` to here; next_ms: how long the first step of a long prompt is predicted to take.
        tool_formats: the formats of tools' calls that the model's chat template names.
        bos, eos: the texts of the tokens that begin and end a sequence, "" where there is none.
    """

    model: str
    device: str
    resident: bool
    vram_bytes: int
    quant_kind: str
    tokenizer_kind: str
    vocab_size: int
    cells: int
    cells_per_job: int
    sequences: int
    exact: bool
    load_ms: float
    next_ms: float = 0.0
    tool_formats: tuple[ToolFormat, ...] = ()
    bos: str = ""
    eos: str = ""


class LoadFailed(Message, frozen=True):
    """The model cannot be loaded; the engine exits. `code` is an error code of the contract."""

    code: str
    message: str


class Accepted(Message, frozen=True):
    """The run can begin; its prompt's token ids."""

    run: int
    prompt: tuple[int, ...]


class Tokenized(Message, frozen=True):
    """A prompt's token ids, and how each is shown."""

    run: int
    prompt: tuple[int, ...]
    pieces: tuple[bytes, ...]


class Rejected(Message, frozen=True):
    """The prompt cannot be prepared: a client's fault when `param` names a field, otherwise ours."""

    run: int
    message: str
    param: str | None


class Rendering(Message, frozen=True):
    """The prompt takes long to render (`slow`), or its rendering is over. In between, the engine waits for a process
    that has limits of its own, so it is not stuck."""

    run: int
    slow: bool


class TokenOut(msgspec.Struct, frozen=True, array_like=True):
    """One token of a run and the text that became certain with it.

    `token` is None when only text comes out that was held back until the end. `held` is all text that is held back
    after this token: it goes out if the run does not go on. `logprobs`: if wanted, its own and the likeliest ones'."""

    run: int
    token: int | None
    text: str
    held: str = ""
    logprobs: Logprobs = ()


class Started(Message, frozen=True):
    """The run gets a slot, for which it waited since `Begin` or since it was preempted. Sent before anything is done
    for it: so the front knows which runs an engine may have died of."""

    run: int


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """So many prompt tokens of a run are in KV cells. `cached`: only when it got a slot, how many of them were there
    already."""

    run: int
    prompt_processed: int
    cached: int = 0


class EndOfRun(msgspec.Struct, frozen=True, array_like=True):
    """A run that ended without a stop. Its sequence and cells were freed before this was sent. `error_code` is None for
    a natural end; then `reason` says which."""

    run: int
    reason: Literal["stop", "length", "stop_sequence"] | None
    cells_before: int
    cells_after: int
    error_code: str | None = None
    error_message: str = ""
    cells_warm: int = 0


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of a run's prompt tokens, of number `first` and those that follow it."""

    run: int
    first: int
    logprobs: tuple[Logprobs, ...]


StepOutcome = Literal["done", "aborted", "no_room", "failed"]
"""How a step ended: computed, ended by an interrupt, without free KV cells for it, or by a fault of the device."""


class Step(Message, frozen=True):
    """The results of one step, in order: tokens, then progress, then ends.

    Attributes:
        cells_used: KV cells that runs hold after it, shared ones counted once, by the audited ledger.
        sequences_used: sequences that hold them.
        next_ms: how long the next step is predicted to take, as the runs are now; with none left, the first step of a
            long prompt.
        outcome: how it ended. After any but `done` the runs that the step brings nothing of are computed again, or are
            in `ended` or `preempted`; with `exact` a step may have brought others something before.
        preempted: runs that were preempted because others need their cells. They hold no cells any more and wait for
            a slot.
        cells_cached: KV cells that are kept for later runs and held by none.
        prompt_computed: prompt tokens that it computed.
        prompt_logprobs: of the prompts of runs that want them.
    """

    duration_ms: float
    tokens: tuple[TokenOut, ...]
    progress: tuple[Progress, ...]
    ended: tuple[EndOfRun, ...]
    cells_used: int
    sequences_used: int
    next_ms: float
    outcome: StepOutcome = "done"
    preempted: tuple[int, ...] = ()
    cells_cached: int = 0
    prompt_computed: int = 0
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()

    @property
    def aborted(self) -> bool:
        """Whether an interrupt ended it."""
        return self.outcome == "aborted"


class Stopped(Message, frozen=True):
    """The run is stopped and holds no cells (also if it was unknown or had ended).

    Ages instead of times, so that two machines' clocks need not agree.

    Attributes:
        stopped_ago_ms: how long before the sending computing ended.
        freed_ago_ms: how long before the sending its cells were free; None: they cannot be freed.
        cells_before, cells_after: KV cells that it held and holds, by the engine's own count.
        cells_used, sequences_used, cells_cached: as in `Step`, after it.
        cells_warm: KV cells that it leaves for later runs.
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


class Stored(Message, frozen=True):
    """The prefix store holds so many bytes now."""

    bytes: int


class Pong(Message, frozen=True):
    """The answer to `Ping`."""


class AuditFault(Message, frozen=True):
    """The ledger disagreed with the model's own count of KV cells, or the engine's runs with the front's.

    Attributes:
        run: the run of the sequence, or its last one; None if there was none.
        message: what was found, for people.
        repaired: whether it is repaired. If not, the sequence is not used until it is clean.
    """

    run: int | None
    message: str
    repaired: bool


class NarrationEvent(Message, frozen=True):
    """A log event of the engine, for listeners at the front. `owner`: the owner of its job."""

    event: dict[str, str | int | float | bool | None]
    owner: str | None


FromEngine = (
    Loading
    | Ready
    | LoadFailed
    | Accepted
    | Tokenized
    | Rejected
    | Rendering
    | Started
    | Step
    | Stopped
    | Stored
    | Pong
    | AuditFault
    | NarrationEvent
)
