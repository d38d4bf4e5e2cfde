"""Passes a worker's log events on to the routers, which have the listeners."""

from collections.abc import Callable

from worker_orcd import narration
from worker_orcd.narration.action import EventFields


class Relay(narration.Broadcast):
    """Where a worker's log events go."""

    def __init__(self) -> None:
        super().__init__()
        self.log: Callable[[EventFields, str | None], None] | None = None
        """As `WorkerHost.log`, from when there is one."""

    def emit(self, event: EventFields, owner: str | None) -> None:
        """Pass it on."""
        if self.log is not None:
            self.log(event, owner)
