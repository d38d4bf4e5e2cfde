"""`Step`: the results of one step of the engine."""

from typing import Literal

import msgspec

from worker_orcd.protocol.messages.message import Message
from worker_orcd.sampling import Logprobs


class TokenOut(msgspec.Struct, frozen=True, array_like=True):
    """One token of a run, and the text that became final with it.

    Attributes:
        token: its id; None if the run's end only releases text that was held back.
        text: the text that became final.
        held: all text that is still held back after this token. It is released if the run ends here.
        logprobs: if requested, the log probabilities of the token and of the most likely tokens.
    """

    run: int
    token: int | None
    text: str
    held: str = ""
    logprobs: Logprobs = ()


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """The progress of a run's prompt.

    Attributes:
        prompt_processed: prompt tokens in KV cells.
        cached: how many of them were reused when the run got its slot; 0 in later reports.
    """

    run: int
    prompt_processed: int
    cached: int = 0


class EndOfRun(msgspec.Struct, frozen=True, array_like=True):
    """The end of a run that was not stopped. Its sequence and cells were freed before this was sent.

    Attributes:
        reason: the kind of natural end; None after an error.
        cells_before, cells_after: KV cells that it held before and holds now, by the engine's own count.
        error_code: an error code of the API; None for a natural end.
        error_message: what failed.
        cells_warm: how many of its cells, or of those that it had when it was preempted, later runs can reuse.
        embedding: the prompt's embedding, if requested: 32-bit floats of a vector of length one.
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
"""How a step ended: computed, aborted, too few free KV cells, or a device failure."""


class Step(Message, frozen=True):
    """The results of one step, in order: tokens, then progress, then ends.

    Attributes:
        duration_ms: the duration of the step.
        tokens, progress, ended: the results for runs.
        cells_used: KV cells that runs hold afterwards, by the audited ledger. Shared cells count once.
        sequences_used: number of sequences that hold them.
        next_ms: predicted duration of the next step with the current runs; without runs, of the first step of a long
            prompt.
        outcome: how the step ended. Unless it is `done`, the runs without results in this message are computed again,
            or are in `ended` or `preempted`. With `exact`, the message may contain results of earlier parts of the
            step.
        preempted: runs that were preempted because others need their cells or slots. They hold no cells, and wait for a
            slot.
        cells_cached: KV cells that are warm.
        prompt_computed: number of prompt tokens computed.
        prompt_logprobs: log probabilities of prompts, for runs that request them.
        returned: runs that wait in the front from now on, because many more urgent ones wait here. The engine has
            dropped them.
        followers: number of runs that wait for a live run's prefix, and leave free slots to others.
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
        """Whether a stop aborted the step."""
        return self.outcome == "aborted"
