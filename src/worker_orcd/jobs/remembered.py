"""Cancels that overtook their `/execute`: kept for a few seconds, used once (contract, section 3)."""

from collections import OrderedDict

from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.moment import Moment
from worker_orcd.jobs.stops import Stop

MOST_REMEMBERED = 10_000


class RememberedCancels:
    """The first cancel of each id that was never seen, for `keep_sec` seconds; of too many the oldest go."""

    def __init__(self, keep_sec: float, *, most: int = MOST_REMEMBERED) -> None:
        self._keep_sec = keep_sec
        self._most = most
        self._stops: OrderedDict[JobKey, Stop] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stops)

    def add(self, key: JobKey, stop: Stop) -> None:
        """Remember a cancel. A second one for the same id neither replaces the first nor makes it last longer."""
        self._forget_old(stop.accepted_at)
        self._stops.setdefault(key, stop)
        while len(self._stops) > self._most:
            self._stops.popitem(last=False)

    def of(self, key: JobKey, now: Moment) -> Stop | None:
        """The cancel that waits for this id, if one does."""
        self._forget_old(now.mono)
        return self._stops.get(key)

    def use(self, key: JobKey) -> None:
        """It has found its job."""
        self._stops.pop(key, None)

    def _forget_old(self, now: float) -> None:
        while self._stops and now - next(iter(self._stops.values())).accepted_at > self._keep_sec:
            self._stops.popitem(last=False)
