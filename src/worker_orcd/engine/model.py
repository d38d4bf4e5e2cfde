"""The interface of a model for the engine's loop. Implemented by `llama.py`, `encoder.py` and `testing/scripted.py`."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, Protocol

from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.grammars.masks import Grammars
from worker_orcd.engine.pooling import Vector
from worker_orcd.protocol.messages import Pooling, Ready, StepOutcome, Template
from worker_orcd.sampling import SamplingParams


class ModelLoadError(Exception):
    """The model cannot be loaded as configured. `code` is an error code of the API."""

    def __init__(self, message: str, code: str = "MODEL_LOAD_FAILED") -> None:
        super().__init__(message)
        self.code = code


class PromptRefused(Exception):
    """A prompt that cannot be rendered or tokenized. `param`: the faulty field, None if the fault is the worker's."""

    def __init__(self, message: str, param: str | None = "prompt") -> None:
        super().__init__(message)
        self.param = param


class AbortMode(IntEnum):
    """Which stops may abort a step. Each has an interrupt byte."""

    NONE = 0
    OVERDUE = 1
    """Only an overdue stop: one that has waited for nearly 100 ms."""
    ANY = 2
    """Every stop."""


class Outcome(Enum):
    """How a step ended."""

    DONE = "done"
    ABORTED = "aborted"
    """A stop aborted the step. `Rollback` restores the sequences to their state before it."""
    NO_ROOM = "no room"
    """Too few KV cells were free; nothing was written."""
    NO_MEMORY = "no memory"
    """The device had no memory left for the step."""
    FAILED = "failed"
    """The device or backend failed."""


REPORTED: dict[Outcome, StepOutcome] = {
    Outcome.DONE: "done",
    Outcome.ABORTED: "aborted",
    Outcome.NO_ROOM: "no_room",
    Outcome.NO_MEMORY: "failed",
    Outcome.FAILED: "failed",
}
"""Outcomes as in `Step`."""


def failure_of(outcome: Outcome, device: str) -> tuple[str, str]:
    """The API's error code and message for a step that failed on this device."""
    if device == "cpu":
        return "INTERNAL", "the computation failed"
    if outcome is Outcome.NO_MEMORY:
        return "VRAM_OOM", f"{device} has no memory left for the computation"
    return "CUDA_ERROR", f"{device} failed during the computation"


MemoryKind = Literal["attention", "sliding window", "recurrent", "hybrid"]


@dataclass(frozen=True, slots=True)
class Memory:
    """The kind of memory that a model keeps of a sequence, and whether it can be shortened.

    Attributes:
        kind: `attention` keeps all positions, `sliding window` only the latest positions in some layers, `recurrent`
            one state for all positions, `hybrid` a state in some layers and positions in the others.
        trims: whether a sequence can be shortened to any length. If not, an aborted step leaves the states of all
            sequences undefined, also of sequences without rows in the step.
        window: positions that the layers with a sliding window keep; None without such layers. All positions of a
            sequence are kept as long as it never exceeds the window.
    """

    kind: MemoryKind
    trims: bool
    window: int | None = None

    def hands_over(self, computed: int, length: int) -> bool:
        """Whether another run can start from the first `length` of a sequence's `computed` tokens.

        llama.cpp reuses the cells that a sliding window has left behind, so a sequence that exceeded its window can
        only be continued from its end. The same holds for a recurrent state.
        """
        if length >= computed:
            return True
        return self.trims and (self.window is None or computed <= self.window)


ATTENTION = Memory("attention", trims=True)


@dataclass(slots=True)
class Batch:
    """The rows of one step: row *r* is token `tokens[r]` at `positions[r]` of sequence `sequences[r]`.

    Only rows with `wanted[r]` are sampled afterwards. With `embeds`, the rows' embeddings are read, too.
    """

    tokens: list[int]
    positions: list[int]
    sequences: list[int]
    wanted: list[bool]
    embeds: bool = False


class Sampler(Protocol):
    """Draws the tokens of one run. Keeps the drawn tokens for the repetition penalty."""

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        """Draw the run's token number `index` from the last step's row `row`, among the tokens set in `allowed`."""

    def close(self) -> None:
        """Free the sampler's resources."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a model's graph.

    Attributes:
        kind: the backend's name for it, such as `MUL_MAT`.
        name: the name of the weights, or else of the result.
        weight_type: the type of the weights, such as `F32`; empty without weights.
    """

    kind: str
    name: str
    weight_type: str = ""


class Computes(Protocol):
    """Computes steps."""

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Compute a step. `abort_mode`: which stops may abort it."""

    def logits(self, row: int) -> bytes:
        """The logits of the last step's row `row`. Comparable bit for bit."""

    def trim(self, sequence: int, length: int) -> bool:
        """Remove a sequence's tokens after its first `length`; 0 frees it. Returns False if that is impossible; then
        nothing changes."""


class SidePool(Protocol):
    """A second pool of cells, whose steps can be paused between operations. At most one step is in progress."""

    @property
    def room(self) -> int:
        """Number of free cells."""

    @property
    def cell_bytes(self) -> int:
        """Bytes that moving a sequence copies, for each of its cells."""

    def prepare(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can be moved without delay. If not, that is being prepared."""

    @property
    def sequences(self) -> frozenset[int]:
        """The sequences whose cells are here."""

    @property
    def in_progress(self) -> frozenset[int]:
        """The sequences with rows in the step in progress; empty if there is none."""

    def begin(self, batch: Batch, predicted_ms: float) -> None:
        """Begin a step, which `proceed` computes."""

    def proceed(self, until: float) -> Outcome | None:
        """Compute until this time of the monotonic clock in seconds, or until the interrupt byte is set, but at least a
        little. Returns the step's outcome if it has ended. Rows of a step that is not done are removed."""

    def abort(self) -> None:
        """End the step in progress, if there is one, and remove its rows."""


class Inspection(Computes, Protocol):
    """Computes with a model's weights, and records the results of each operation."""

    def recorded(self) -> dict[Operation, set[int]]:
        """Hashes of the rows computed since the last call. Operations are in the order of the graph."""


class Model(Computes, Protocol):
    """A loaded model for `facts.sequences` sequences."""

    @property
    def facts(self) -> Ready:
        """The model's properties and sizes. The process fills in `exact` and `load_ms`."""

    @property
    def grammars(self) -> Grammars:
        """The grammars that constrain the output of runs."""

    @property
    def abortable(self) -> bool:
        """Whether the interrupt byte can end a running step."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text."""

    @property
    def pooling(self) -> Pooling:
        """How the rows' embeddings are combined into the prompt's; `none`: no embeddings are computed."""

    @property
    def embeds_behind_prefix(self) -> bool:
        """Whether a prompt's embedding can be computed after a reused prefix."""

    @property
    def dimensions(self) -> int:
        """Number of dimensions of the embeddings."""

    def embedding(self, row: int) -> Vector:
        """The embedding of the last step's row `row`, if that step had `embeds`."""

    @property
    def layers(self) -> int:
        """Number of layers. An abort waits for at most about one layer's share of a step."""

    @property
    def separate_streams(self) -> bool:
        """Whether each sequence has its own stream of cells. Then sequence ids are kept without gaps, which makes steps
        faster, and a step is computed in parts (`parts.py`)."""

    @property
    def dense_ids(self) -> bool:
        """Whether steps are faster when sequence ids have no gaps."""

    @property
    def memory(self) -> Memory:
        """The kind of memory of the sequences."""

    @property
    def sequence_ids(self) -> int:
        """Number of sequence ids: one for each of `facts.sequences` runs, and further ids for warm prefixes, if any."""

    def encode(self, prompt: str, template: Template, in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a prompt. Safe to call while a step runs, from several threads.

        Args:
            prompt: raw text, or a conversation as `template` says.
            template: what `prompt` is.
            in_hand: notified when rendering takes longer than usual; dropping it ends the rendering.

        Raises:
            PromptRefused: the prompt cannot be rendered or tokenized.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text. Safe to call while a step runs."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens."""

    def name(self, token: int) -> bytes:
        """The bytes that show a token: its piece, or the name of a control token."""

    def ends_generation(self, token: int) -> bool:
        """Whether the token is an end-of-generation token."""

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """A sampler whose penalties include `history` (prompt and generated tokens)."""

    def inspection(self, sequences: int, cells: int, rows: int) -> AbstractContextManager[Inspection]:
        """An inspection for `sequences` sequences of `cells` cells each, and at most `rows` rows per step.

        Raises:
            ModelLoadError: too little memory.
        """

    def clear(self) -> None:
        """Reset the memory of a model whose sequences are all empty, including where searches for free cells begin."""

    def move(self, source: int, target: int) -> bool:
        """Move sequence `source` to the free id `target`. Takes effect at once, so `source` can be reused. Returns
        False if that failed; then `source` is unchanged."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the first `length` cells of `source` with the free id `target`. Not possible with separate streams."""

    def cells(self, sequence: int) -> int:
        """Number of tokens that a sequence holds, by the backend's own count."""

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """Copy the part of a sequence's memory that cannot be trimmed. Reuses the buffer `into` if its size fits."""

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Restore a copy that `save` made, to the same sequence or another one. Returns False if that failed."""

    def state_bytes(self, sequence: int) -> int:
        """Size in bytes of a sequence's whole memory, as `write_state` writes it."""

    def write_state(self, sequence: int, into: memoryview) -> int:
        """Copy a sequence's whole memory into a buffer of `state_bytes`. Returns the number of bytes written."""

    def read_state(self, sequence: int, state: memoryview) -> bool:
        """Load a free sequence from what `write_state` wrote, in this process or another one with the same model.
        Returns False if that failed; then the sequence must be trimmed."""

    def side_pool(self) -> SidePool | None:
        """The side pool; None if the model has none, or not yet: the first call may start making it."""

    def is_aside(self, sequence: int) -> bool:
        """Whether a sequence's cells are in the side pool. They are then counted and written like others, but neither
        computed by `decode` nor shared."""

    def is_computing(self, sequence: int) -> bool:
        """Whether the sequence has rows in progress there. Until they are done, its cells cannot be written."""

    def move_aside(self, sequence: int) -> bool:
        """Move a sequence to the side pool, which has room for it. Returns False if that failed; then nothing has
        changed."""

    def move_back(self, sequence: int) -> bool:
        """Move a sequence without rows in progress back. Returns False if that failed; then nothing has changed."""
