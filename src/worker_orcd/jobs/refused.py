"""Ids of requests that were refused: a cancel that follows is for that request, not for the corrected one."""

from collections import OrderedDict

from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.moment import Moment

MAX_REFUSED_PER_OWNER = 1_000
REFUSED_KEPT_SEC = 300.0
"""As long as the records of jobs that ended: a cancel that follows one of those is not remembered either."""


class RefusedRequests:
    """The ids whose latest request was refused. Bounded for each owner; of too many the oldest go."""

    def __init__(
        self, *, keep_sec: float = REFUSED_KEPT_SEC, max_per_owner: int = MAX_REFUSED_PER_OWNER
    ) -> None:
        self._keep_sec = keep_sec
        self._max_per_owner = max_per_owner
        self._by_owner: dict[str, OrderedDict[str, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def add(self, key: JobKey, now: Moment) -> None:
        """A request with this id is refused."""
        owner, job_id = key
        ids = self._by_owner.setdefault(owner, OrderedDict())
        ids[job_id] = now.mono
        ids.move_to_end(job_id)
        self._forget_old(owner, now)

    def accepted(self, key: JobKey) -> None:
        """A request with this id is accepted: from now on a cancel is for that one."""
        owner, job_id = key
        ids = self._by_owner.get(owner)
        if ids is not None:
            ids.pop(job_id, None)

    def has(self, key: JobKey, now: Moment) -> bool:
        """Whether the latest request with this id was refused, not too long ago."""
        owner, job_id = key
        self._forget_old(owner, now)
        return job_id in self._by_owner.get(owner, ())

    def _forget_old(self, owner: str, now: Moment) -> None:
        ids = self._by_owner.get(owner)
        while ids and (
            len(ids) > self._max_per_owner or now.mono - next(iter(ids.values())) > self._keep_sec
        ):
            ids.popitem(last=False)
        if ids is not None and not ids:
            del self._by_owner[owner]
