"""Ids of requests that were refused: a cancel that follows is for that request, not for the corrected one."""

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import JobKey

MAX_REFUSED = 10_000
REFUSED_KEPT_SEC = 300.0
"""As long as the records of jobs that ended: a cancel that follows one of those is not remembered either."""


class RefusedRequests:
    """The ids whose latest request was refused; beyond the bound, the oldest of the owner that has most are
    dropped."""

    def __init__(self, *, keep_sec: float = REFUSED_KEPT_SEC, bound: int = MAX_REFUSED) -> None:
        self._keep_sec = keep_sec
        self._refused: BoundedByOwner[str, float] = BoundedByOwner(bound)
        """When each id was refused, oldest first."""

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, key: JobKey, now: Timestamp) -> None:
        """A request with this id is refused."""
        self._forget_old(now)
        self._refused.add(*key, now.mono)

    def accepted(self, key: JobKey) -> None:
        """A request with this id is accepted: from now on a cancel is for that one."""
        self._refused.remove(*key)

    def has(self, key: JobKey, now: Timestamp) -> bool:
        """Whether the latest request with this id was refused, not too long ago."""
        self._forget_old(now)
        return self._refused.get(*key) is not None

    def _forget_old(self, now: Timestamp) -> None:
        self._refused.drop_while(lambda refused_at: now.mono - refused_at > self._keep_sec)
