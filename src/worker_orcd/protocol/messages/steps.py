"""A step of the engine: `Step`, and what it brings to runs."""

from typing import Literal

import msgspec

from worker_orcd.protocol.messages.message import Message
from worker_orcd.sampling import Logprobs


class TokenOut(msgspec.Struct, frozen=True, array_like=True):
    """One token of a run and the text that became certain with it.

    Attributes:
        token: its id; None when the run's end only releases text that was held back.
        text: the text that became certain.
        held: all text that is still held back after this token; it is released if the run ends here.
        logprobs: if requested, its own log probability and those of the likeliest tokens.
    """

    run: int
    token: int | None
    text: str
    held: str = ""
    logprobs: Logprobs = ()


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How much of a run's prompt is in KV cells.

    Attributes:
        prompt_processed: prompt tokens in KV cells.
        cached: how many of them were there already when the run got its slot; 0 in later reports.
    """

    run: int
    prompt_processed: int
    cached: int = 0


class EndOfRun(msgspec.Struct, frozen=True, array_like=True):
    """The end of a run that was not stopped. Its sequence and cells were freed before this was sent.

    Attributes:
        reason: which natural end; None after an error.
        cells_before, cells_after: KV cells that it held and holds, by the engine's own count.
        error_code: an error code of the contract; None for a natural end.
        error_message: what failed.
        cells_warm: of its cells, or those that it had when it was preempted, how many a later run need not compute.
        embedding: the prompt's, if requested: 32-bit floats of a vector of length one.
    """

    run: int
    reason: Literal["stop", "length", "stop_sequence"] | None
    cells_before: int
    cells_after: int
    error_code: str | None = None
    error_message: str = ""
    cells_warm: int = 0
    embedding: bytes = b""


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of a run's prompt tokens, from the token with index `first` on."""

    run: int
    first: int
    logprobs: tuple[Logprobs, ...]


StepOutcome = Literal["done", "aborted", "no_room", "failed"]
"""How a step ended: computed, ended by an interrupt, without free KV cells for it, or by a fault of the device."""


class Step(Message, frozen=True):
    """The results of one step, in order: tokens, then progress, then ends.

    Attributes:
        duration_ms: how long it took.
        tokens, progress, ended: what it brings to runs.
        cells_used: KV cells that runs hold after it, shared ones counted once, by the audited ledger.
        sequences_used: sequences that hold them.
        next_ms: how long the next step is predicted to take, as the runs are now; with none left, the first step of a
            long prompt.
        outcome: how it ended. After any but `done`, the runs of which it reports nothing are computed again, or are
            in `ended` or `preempted`. With `exact`, it may report results that were computed before it ended.
        preempted: runs that were preempted because others need their cells. They hold no cells any more and wait for
            a slot.
        cells_cached: KV cells that are kept for later runs and held by none.
        prompt_computed: prompt tokens that it computed.
        prompt_logprobs: of the prompts of runs that want them.
        returned: runs that wait in the front from now on, because many more urgent ones wait here. The engine has
            forgotten them.
        followers: runs that wait for a live run's prefix, and leave free slots to others.
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
    returned: tuple[int, ...] = ()
    followers: int = 0

    @property
    def aborted(self) -> bool:
        """Whether an interrupt ended it."""
        return self.outcome == "aborted"
