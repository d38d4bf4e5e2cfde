"""Ids of refused requests. A cancel that follows is meant for the refused request, not for the corrected one."""

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import JobKey

MAX_REFUSED = 10_000
REFUSED_KEPT_SEC = 300.0
"""As long as records of ended jobs: cancels of those jobs are not remembered either."""


class RefusedRequests:
    """The ids whose latest request was refused. Beyond the bound, the oldest ids of the owner with the most are
    dropped."""

    def __init__(self, *, keep_sec: float = REFUSED_KEPT_SEC, bound: int = MAX_REFUSED) -> None:
        self._keep_sec = keep_sec
        self._refused: BoundedByOwner[str, float] = BoundedByOwner(bound)
        """When each id was refused, oldest first."""

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, key: JobKey, now: Timestamp) -> None:
        """Note that a request with this id was refused."""
        self._forget_old(now)
        self._refused.add(*key, now.mono)

    def accepted(self, key: JobKey) -> None:
        """Note that a request with this id was accepted: cancels are meant for that one now."""
        self._refused.remove(*key)

    def has(self, key: JobKey, now: Timestamp) -> bool:
        """Whether the latest request with this id was refused, and recently."""
        self._forget_old(now)
        return self._refused.get(*key) is not None

    def _forget_old(self, now: Timestamp) -> None:
        self._refused.drop_while(lambda refused_at: now.mono - refused_at > self._keep_sec)
