"""Who knows where a job is: each job id has two keepers among the workers, found by a hash of the id.

A keeper decides whether an id is in use, remembers which worker has its job, and remembers cancels that overtook their
jobs. All of it is small and pure: each worker of a fleet is a keeper of its share of all ids.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

from worker_orcd.bounded import BoundedByOwner
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.refused_requests import RefusedRequests
from worker_orcd.jobs.stop_request import StopRequest

KEEPERS = 2
"""Keepers of an id: the first decides, the second takes over when the first is dead or does not answer."""
MAX_CLAIMS = 100_000


@dataclass(frozen=True, slots=True)
class Claim:
    """The latest use of a job id, and the worker that has its job.

    Attributes:
        incarnation: which use.
        worker: the worker's name.
        parts: whether the id is also that of a request whose jobs have ids of their own, perhaps at several workers.
            If that is all, incarnation and worker are empty.
        router: the router that serves the job.
        term: how many routers served it before that one.
        age_sec: time since the use's request was accepted.
    """

    incarnation: str
    worker: str
    parts: bool = False
    router: str = ""
    term: int = 0
    age_sec: float = 0.0

    def replaces(self, held: "Claim") -> bool:
        """Whether this claim replaces an earlier one of the same use. When a job's router has died, several others may
        want to serve the job at the same time, in the same term: the first one does. One that was only thought to be
        dead is in an earlier term."""
        return self.term > held.term or (self.term, self.router) == (held.term, held.router)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A keeper's answer to a claim.

    Attributes:
        held_by: the claim of another use of the id, which keeps this one out; None: the claim is granted.
        held_sec: how old that claim is.
        cancelled: the cancel that overtook this job.
    """

    held_by: Claim | None = None
    held_sec: float = 0.0
    cancelled: StopRequest | None = None


def keepers_of(key: JobKey, workers: Collection[str]) -> list[str]:
    """The workers in the order in which they keep this id; the first `KEEPERS` of them do.

    The order of two workers for an id does not depend on the others (rendezvous hashing): when a worker joins or dies,
    all but its share of the ids keep their keepers.
    """
    owner, job_id = key

    def weight(worker: str) -> bytes:
        return hashlib.blake2b(f"{worker}\0{owner}\0{job_id}".encode(), digest_size=8).digest()

    return sorted(workers, key=weight)


class Keeper:
    """The ids that one worker keeps."""

    def __init__(self, cancel_memory_sec: float, *, bound: int = MAX_CLAIMS) -> None:
        self._claims: BoundedByOwner[str, tuple[Claim, float, float]] = BoundedByOwner(bound)
        """The latest use of each id, when it was claimed here first, and when its request was accepted."""
        self._cancels = PendingCancels(cancel_memory_sec)
        self._refused = RefusedRequests()

    def claim(self, key: JobKey, claim: Claim, now: Timestamp, replaces: str | None = None) -> Verdict:
        """Claim an id for one use. A claim of the same use replaces the earlier one if it is by the same router, or in
        a later term.

        Args:
            key: owner and job id.
            claim: the use, and its worker.
            now: the time.
            replaces: another use of the id, of which is known that it is over.
        """
        held, since, accepted = self._claims.get(*key) or (None, now.mono, now.mono)
        if held is not None and not claim.incarnation:
            self._claims.add(*key, (replace(held, parts=True), since, accepted))
            return Verdict()
        if held is not None and held.incarnation not in (claim.incarnation, replaces):
            return Verdict(held_by=held, held_sec=now.mono - since)
        again = held is not None and held.incarnation == claim.incarnation
        if held is not None and again:
            if not claim.replaces(held):
                return Verdict(held_by=held, held_sec=now.mono - since)
            claim = replace(claim, parts=claim.parts or held.parts)
        self._claims.add(*key, (claim, since if again else now.mono, now.mono - claim.age_sec))
        self._refused.accepted(key)
        cancel = None if again else self._cancels.of(key, now)
        if cancel is not None:
            self._cancels.use(key)
        return Verdict(cancelled=cancel)

    def cancel(
        self, key: JobKey, stop: StopRequest, now: Timestamp, age_sec: float = 0.0, *, remember: bool = True
    ) -> Claim | None:
        """Look up the use that a client's cancel is for. A cancel of an unknown id is remembered for a while, unless
        the latest request with this id was refused.

        Args:
            key: owner and job id.
            stop: the cancel.
            now: the time.
            age_sec: how long ago the cancel was accepted, if it was tried before. Then no younger use is meant.
            remember: whether no keeper has answered yet.
        """
        held, _, accepted = self._claims.get(*key) or (None, now.mono, now.mono)
        if age_sec and held is not None and accepted > now.mono - age_sec:
            return None
        if held is None and remember and not self._refused.has(key, now):
            self._cancels.add(key, stop)
        return held

    def look(self, key: JobKey) -> Claim | None:
        """The latest use of an id."""
        held = self._claims.get(*key)
        return None if held is None else held[0]

    def refused(self, key: JobKey, incarnation: str | None, now: Timestamp) -> None:
        """A request with this id was refused; `incarnation` is the use that it had claimed, if it had."""
        held = self.look(key)
        if held is not None and held.incarnation == incarnation:
            self._claims.remove(*key)
            held = None
        if held is None:
            self._refused.add(key, now)
