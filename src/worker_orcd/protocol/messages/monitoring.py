"""Messages for monitoring: pings, audits, the prefix store, and log events."""

from worker_orcd.protocol.messages.message import Message


class Ping(Message, frozen=True):
    """Check that the engine is alive. Answered by `Pong` between two steps. While the model loads, and while an encoder
    computes a prompt, answered at once if there was progress since the last `Pong`.

    Attributes:
        runs: the runs that the front has handed to the engine and that have not ended or been returned.
    """

    runs: tuple[int, ...] = ()


class Pong(Message, frozen=True):
    """The answer to `Ping`."""


class AuditFault(Message, frozen=True):
    """The ledger differed from the model's own count of KV cells, or the engine's runs from the front's.

    Attributes:
        run: the run of the sequence, or its last run; None if there was none.
        message: the difference, as text.
        repaired: whether the difference is repaired. If not, the sequence is not used until its cells are free.
    """

    run: int | None
    message: str
    repaired: bool


class Stored(Message, frozen=True):
    """Prefixes were copied to the store, which frees warm cells.

    Attributes:
        bytes: the size of the store.
        cells_used: cells that live runs hold.
        cells_cached: cells kept for later runs.
    """

    bytes: int
    cells_used: int
    cells_cached: int


class NarrationEvent(Message, frozen=True):
    """A log event of the engine, for the front's listeners. `owner`: the owner of the event's job."""

    event: dict[str, str | int | float | bool | None]
    owner: str | None
