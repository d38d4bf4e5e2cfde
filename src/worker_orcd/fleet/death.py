"""A worker whose engine cannot be started any more ends, so that its jobs go on at other workers."""

from collections.abc import Callable

from worker_orcd.worker.observer import Observer


class Death(Observer):
    """Ends the process when no engine can be had."""

    def __init__(self, die: Callable[[], None]) -> None:
        self._die = die

    def permanently_failed(self, reason: str, code: str) -> None:  # noqa: ARG002  # as `Observer` passes
        """Die, before the jobs here fail."""
        self._die()
