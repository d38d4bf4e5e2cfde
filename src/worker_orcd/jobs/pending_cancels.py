"""Cancels that arrived before their `/execute`. They are kept for a few seconds and used once."""

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.stop_request import StopRequest

MAX_PENDING_CANCELS = 10_000


class PendingCancels:
    """The first cancel of each unknown id, kept for `keep_sec` seconds. Beyond the bound, the oldest cancels of the
    owner with the most are dropped."""

    def __init__(self, keep_sec: float, *, bound: int = MAX_PENDING_CANCELS) -> None:
        self._keep_sec = keep_sec
        self._stops: BoundedByOwner[str, StopRequest] = BoundedByOwner(bound)

    def __len__(self) -> int:
        return len(self._stops)

    def add(self, key: JobKey, stop: StopRequest) -> None:
        """Keep a cancel. A second one for the same id neither replaces the first nor extends its time."""
        self._forget_old(stop.accepted_at)
        kept = self._stops.get(*key)
        if kept is None or self._is_old(kept, stop.accepted_at):
            self._stops.add(*key, stop)

    def of(self, key: JobKey, now: Timestamp) -> StopRequest | None:
        """The cancel that is kept for this id, if any."""
        self._forget_old(now.mono)
        stop = self._stops.get(*key)
        return None if stop is None or self._is_old(stop, now.mono) else stop

    def use(self, key: JobKey) -> None:
        """Drop the cancel of this id, because its job has arrived."""
        self._stops.remove(*key)

    def _forget_old(self, now: float) -> None:
        self._stops.drop_while(lambda stop: self._is_old(stop, now))

    def _is_old(self, stop: StopRequest, now: float) -> bool:
        """A cancel may have been added late: then older ones come after younger ones."""
        return now - stop.accepted_at > self._keep_sec
