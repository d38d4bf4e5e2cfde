"""What the loop needs of a model. llama.cpp is one (`llama.py`), the scripted one of `testing/` another."""

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
    """The model cannot be loaded as asked. `code` is an error code of the contract."""

    def __init__(self, message: str, code: str = "MODEL_LOAD_FAILED") -> None:
        super().__init__(message)
        self.code = code


class PromptRefused(Exception):
    """A prompt that cannot be rendered or tokenized. `param` names the field at fault, None if it is our fault."""

    def __init__(self, message: str, param: str | None = "prompt") -> None:
        super().__init__(message)
        self.param = param


class AbortMode(IntEnum):
    """Which stops may abort a step, by the interrupt bytes."""

    NONE = 0
    OVERDUE = 1
    """Only an overdue stop, which has waited for nearly 100 ms."""
    ANY = 2
    """Every stop."""


class Outcome(Enum):
    """How a step ended."""

    DONE = "done"
    ABORTED = "aborted"
    """An interrupt ended it. `Rollback` brings the sequences back to what they were before it."""
    NO_ROOM = "no room"
    """There were not enough free KV cells; nothing was written."""
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
"""Outcomes as `Step` reports them."""


MemoryKind = Literal["attention", "sliding window", "recurrent", "hybrid"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model remembers of a sequence, and whether that can be cut back.

    Attributes:
        kind: `attention` keeps all positions, `sliding window` only the latest in some layers, `recurrent` one state
            for all of them, `hybrid` a state in some layers and positions in the others.
        trims: whether a sequence can be cut back to any shorter length. Where it cannot, an aborted step leaves the
            states of all sequences undefined, also of those that had no rows in it.
        window: positions that the layers with a sliding window keep; None without such layers. A sequence that was
            never longer has all its positions.
    """

    kind: MemoryKind
    trims: bool
    window: int | None = None

    def hands_over(self, computed: int, length: int) -> bool:
        """Whether the first `length` of a sequence's `computed` tokens are right without those behind them.

        Behind a sliding window llama.cpp gives cells away, so what remains of a sequence that was longer than its
        window is only good for going on from its end; and so is a state that cannot be cut back.
        """
        if length >= computed:
            return True
        return self.trims and (self.window is None or computed <= self.window)


ATTENTION = Memory("attention", trims=True)


@dataclass(slots=True)
class Batch:
    """The rows of one step: row *r* is token `tokens[r]` at `positions[r]` of sequence `sequences[r]`.

    Only rows with `wanted[r]` are sampled from afterwards. With `embeds`, the rows' embeddings are read, too.
    """

    tokens: list[int]
    positions: list[int]
    sequences: list[int]
    wanted: list[bool]
    embeds: bool = False


class Sampler(Protocol):
    """Draws the tokens of one job. Keeps the drawn tokens for the repetition penalty."""

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        """Draw the job's token number `index` from the last step's row `row`: one whose bit is set in `allowed`."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a model's graph.

    Attributes:
        kind: as the backend calls it, such as `MUL_MAT`.
        name: of the weights that it multiplies with, or else of its result.
        weight_type: of these weights, such as `F32`; empty if it has none.
    """

    kind: str
    name: str
    weight_type: str = ""


class Computes(Protocol):
    """What computes steps."""

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Compute a step. `abort_mode`: which stops may abort it."""

    def logits(self, row: int) -> bytes:
        """The raw next-token scores of the last step's row `row`, to be compared bit for bit."""

    def trim(self, sequence: int, length: int) -> bool:
        """Forget all of a sequence behind its first `length` tokens; 0 frees it. False: it cannot, nothing changed."""


class Inspection(Computes, Protocol):
    """Computes with a model's weights, and records the results of each operation."""

    def recorded(self) -> dict[Operation, set[int]]:
        """Hashes of the rows computed since the last call, by operation, in the order of the graph."""


class Model(Computes, Protocol):
    """A loaded model with room for `facts.sequences` sequences."""

    @property
    def facts(self) -> Ready:
        """What it is and holds; `exact` and `load_ms` are filled in by the process."""

    @property
    def grammars(self) -> Grammars:
        """What constrains the output of runs to a grammar."""

    @property
    def abortable(self) -> bool:
        """Whether the interrupt byte can end a running step."""

    @property
    def generates(self) -> bool:
        """Whether it generates text."""

    @property
    def pooling(self) -> Pooling:
        """Which rows' embeddings make the one of a prompt; `none`: it embeds nothing."""

    @property
    def embeds_behind_prefix(self) -> bool:
        """Whether a prompt's embedding can be computed behind a prefix that is there already."""

    @property
    def dimensions(self) -> int:
        """Of its embeddings."""

    def embedding(self, row: int) -> Vector:
        """The embedding of the last step's row `row`, if that step had `embeds`."""

    @property
    def layers(self) -> int:
        """Of the model: a step's share of one is about how long an abort may have to wait."""

    @property
    def separate_streams(self) -> bool:
        """Whether each sequence has a stream of cells of its own. Then sequence ids are kept without holes, which makes
        steps faster, and a step is computed in parts (`parts.py`)."""

    @property
    def dense_ids(self) -> bool:
        """Whether steps are faster when sequence ids have no holes."""

    @property
    def memory(self) -> Memory:
        """What kind of memory its sequences have."""

    @property
    def sequence_ids(self) -> int:
        """Number of sequence ids: one for each of `facts.sequences` runs, and more for warm prefixes if it has any."""

    def encode(self, prompt: str, template: Template, in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a prompt. Safe to call while a step runs, from several threads.

        Args:
            prompt: raw text, or a conversation as `template` says.
            template: how to read it.
            in_hand: learns whether rendering takes longer than usual, and can end it.

        Raises:
            PromptRefused: it cannot be rendered.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text. Safe to call while a step runs."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; none for control tokens."""

    def name(self, token: int) -> bytes:
        """The bytes by which a token is shown: its piece, or a control token's name."""

    def ends_generation(self, token: int) -> bool:
        """Whether it is an end-of-generation token."""

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """A sampler that has seen `history` (prompt and generated tokens)."""

    def inspection(self, sequences: int, cells: int, rows: int) -> AbstractContextManager[Inspection]:
        """An inspection for so many sequences with so many cells each, and at most so many rows in a step.

        Raises:
            ModelLoadError: there is no room for it.
        """

    def clear(self) -> None:
        """Reset the cells of a model in which no sequence holds any, and where the search for free ones begins."""

    def move(self, source: int, target: int) -> bool:
        """Give sequence `source` the free id `target`, at once: its memory can be copied, and `source` be used again.
        False: it did not work, and `source` is as it was."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` cells of `source` cells of the free id `target`, too. Not with separate streams."""

    def cells(self, sequence: int) -> int:
        """Tokens that a sequence holds, by the backend's own count."""

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """Copy the part of a sequence's memory that cannot be trimmed, into the buffer `into` if its size fits."""

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Put a copy back that `save` made, into the same sequence or one with another id. False: it did not work."""

    def state_bytes(self, sequence: int) -> int:
        """How long the whole memory of a sequence is as `write_state` writes it, in bytes."""

    def write_state(self, sequence: int, into: memoryview) -> int:
        """Copy the whole memory of a sequence into a buffer of `state_bytes`. Returns how many bytes were written."""

    def read_state(self, sequence: int, state: memoryview) -> bool:
        """Make a free sequence what `write_state` wrote, in this process or in another one with the same model. False:
        it did not work; the sequence has to be trimmed."""
