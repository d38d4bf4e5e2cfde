"""Cancels that overtook their `/execute`: kept for a few seconds, used once (contract, section 3)."""

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.moment import Moment
from worker_orcd.jobs.stops import Stop

MAX_REMEMBERED = 10_000


class RememberedCancels:
    """The first cancel of each id that was never seen, for `keep_sec` seconds; of too many, the oldest of the owner
    that has most are forgotten."""

    def __init__(self, keep_sec: float, *, bound: int = MAX_REMEMBERED) -> None:
        self._keep_sec = keep_sec
        self._stops: BoundedByOwner[str, Stop] = BoundedByOwner(bound)

    def __len__(self) -> int:
        return len(self._stops)

    def add(self, key: JobKey, stop: Stop) -> None:
        """Remember a cancel. A second one for the same id neither replaces the first nor makes it last longer."""
        self._forget_old(stop.accepted_at)
        if self._stops.get(*key) is None:
            self._stops.add(*key, stop)

    def of(self, key: JobKey, now: Moment) -> Stop | None:
        """The cancel that waits for this id, if one does."""
        self._forget_old(now.mono)
        return self._stops.get(*key)

    def use(self, key: JobKey) -> None:
        """The cancel has found its job."""
        self._stops.remove(*key)

    def _forget_old(self, now: float) -> None:
        self._stops.drop_while(lambda stop: now - stop.accepted_at > self._keep_sec)
