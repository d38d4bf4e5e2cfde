"""Who knows where a job is: each job id has two keepers among the workers, found by a hash of the id.

A keeper decides whether an id is in use, remembers which worker has its job, and remembers cancels that overtook their
jobs. All of it is small and pure: each worker of a fleet is a keeper of its share of all ids.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

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
        use: how many uses of the id came before it, as far as its keepers know.
        sent: how many claims the router made for the use before this one.
    """

    incarnation: str
    worker: str
    parts: bool = False
    router: str = ""
    term: int = 0
    age_sec: float = 0.0
    use: int = 0
    sent: int = 0

    def replaces(self, held: "Claim") -> bool:
        """Whether this claim replaces an earlier one of the same use. When a job's router has died, several others may
        want to serve the job at the same time, in the same term: the first one does. One that was only thought to be
        dead is in an earlier term."""
        return self.term > held.term or (self.term, self.router) == (held.term, held.router)

    def overtaken_by(self, held: "Claim") -> bool:
        """Whether the router has made an earlier claim of the same use after this one."""
        return self.term == held.term and self.sent < held.sent


@dataclass(frozen=True, slots=True)
class Verdict:
    """A keeper's answer to a claim.

    Attributes:
        held_by: the claim of another use of the id, which keeps this one out; None: the claim is granted.
        held_sec: time since that claim was made, or made again.
        cancelled: the cancel that overtook the id's first use: not this one, if another keeper knows of an earlier use.
        use: how many uses of the id came before, as far as this keeper knows.
    """

    held_by: Claim | None = None
    held_sec: float = 0.0
    cancelled: StopRequest | None = None
    use: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What a keeper knows of an id when a cancel asks.

    Attributes:
        at: the keeper's clock, monotonic seconds. Only the keeper itself can read it.
        claim: the latest use; None: it knows of none.
        order: how many uses of all ids this keeper had granted with that one; more for a later use of the id.
        age_sec: time since the use was accepted, at least.
        reached: whether the cancel was carried out there, as far as the keeper can.
        stopped: whether the use's job is at the keeper, and was stopped.
        refused: whether it knows of no use, but that the latest request with the id was refused.
    """

    at: float
    claim: Claim | None = None
    order: int = 0
    age_sec: float = 0.0
    reached: bool = False
    stopped: bool = False
    refused: bool = False


class _Held(NamedTuple):
    """A claim, when it was made last, the latest time at which its use can have been accepted, its order, and the
    cancel that overtook it. Each answer to the router that made the claim reports that one, since an answer may be
    lost; a router that takes the job over does not know yet of earlier uses that other keepers know of."""

    claim: Claim
    since: float
    accepted: float
    order: int
    cancel: StopRequest | None


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
        self.granted = 0
        """Uses granted so far."""
        self._claims: BoundedByOwner[str, _Held] = BoundedByOwner(bound)
        """The latest use of each id. What was not claimed again for the longest time is forgotten first."""
        self._cancels = PendingCancels(cancel_memory_sec)
        self._refused = RefusedRequests()

    def claim(self, key: JobKey, claim: Claim, now: Timestamp, replaces: str | None = None) -> Verdict:
        """Claim an id for one use. A claim of the same use replaces the earlier one if it is by the same router, or in
        a later term; made again, it lasts.

        Args:
            key: owner and job id.
            claim: the use, and its worker.
            now: the time.
            replaces: another use of the id, of which is known that it is over.
        """
        entry = self._claims.get(*key)
        if entry is not None and not claim.incarnation:
            self._claims.add(*key, entry._replace(claim=replace(entry.claim, parts=True)))
            return Verdict()
        held = None if entry is None else entry.claim
        accepted, use = now.mono - claim.age_sec, claim.use
        again = held is not None and held.incarnation == claim.incarnation
        if entry is not None and held is not None:
            other = not again and held.incarnation != replaces
            if other or (again and not claim.replaces(held)):
                return Verdict(held_by=held, held_sec=now.mono - entry.since, use=held.use)
            use = max(use, held.use + (not again))
            if again:
                accepted = min(accepted, entry.accepted)
                parts = claim.parts or held.parts
                claim = replace(held if claim.overtaken_by(held) else claim, parts=parts)
        self.granted += not again
        order, cancel = self.granted, self._cancels.of(key, now)
        if entry is not None and again:
            order, cancel = entry.order, entry.cancel if claim.term == entry.claim.term else None
        cancel = None if use else cancel
        self._claims.add(*key, _Held(replace(claim, use=use), now.mono, accepted, order, cancel))
        self._refused.accepted(key)
        self._cancels.use(key)
        return Verdict(cancelled=cancel, use=use)

    def known(self, key: JobKey, now: Timestamp) -> Known:
        """What is known of an id, for a cancel."""
        held = self._claims.get(*key)
        if held is None:
            return Known(now.mono, refused=self._refused.has(key, now))
        return Known(now.mono, held.claim, held.order, now.mono - held.accepted)

    def remember(self, key: JobKey, stop: StopRequest, now: Timestamp) -> Known:
        """Remember a cancel of an unknown id for a while, for the id's first use; unless the latest request with this
        id was refused. `stop.accepted_at` is on this keeper's clock."""
        known = self.known(key, now)
        if known.claim is None and not known.refused:
            self._cancels.add(key, stop)
        return known

    def look(self, key: JobKey) -> Claim | None:
        """The latest use of an id."""
        held = self._claims.get(*key)
        return None if held is None else held.claim

    def refused(self, key: JobKey, incarnation: str | None, now: Timestamp) -> None:
        """A request with this id was refused; `incarnation` is the use that it had claimed, if it had."""
        held = self.look(key)
        if held is not None and held.incarnation == incarnation:
            self._claims.remove(*key)
            held = None
        if held is None:
            self._refused.add(key, now)
