"""What the front watches beside the runs: signs of life, audits, the prefix store, and log events."""

from worker_orcd.protocol.messages.message import Message


class Ping(Message, frozen=True):
    """Ask for a sign of life. Answered by `Pong` between two steps; while the model loads, only if loading has made
    progress since the last `Pong`.

    Attributes:
        runs: the runs that the front has handed to the engine and not got back.
    """

    runs: tuple[int, ...] = ()


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


class Stored(Message, frozen=True):
    """The size of the prefix store has changed. `bytes`: its size now."""

    bytes: int


class NarrationEvent(Message, frozen=True):
    """A log event of the engine, for listeners at the front. `owner`: the owner of its job."""

    event: dict[str, str | int | float | bool | None]
    owner: str | None
