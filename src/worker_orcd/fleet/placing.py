"""Places jobs at workers: claims their ids, hands them over, and hands them to another worker when theirs dies."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from worker_orcd.fleet.keepers import KEEPERS, Claim, Verdict
from worker_orcd.fleet.mirrors import Mirror, Mirrors, freed_now
from worker_orcd.fleet.peers import PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.refusals import keepers_silent, nobody_takes_jobs
from worker_orcd.fleet.routing import Choice, Routed, WarmPrefixes, chain_of, choose
from worker_orcd.fleet.stopping import KEEPER_SEC, Stopping
from worker_orcd.fleet.tasks import Tasks, answers
from worker_orcd.jobs.errors import ErrorCode, JobError, id_in_use
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.replication import JobUpdate, whole
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.suspects import MAX_DEATHS
from worker_orcd.worker.interface import NO_HEADERS
from worker_orcd.worker.now import now

GRACE_SEC = 3.0
"""An id whose worker has died stays in use so long: its job may be about to go on elsewhere."""
MAX_ASKED = 8
"""Workers that are asked for a free slot, those with the least load first, before a job may wait at one."""
RETRY_SEC = 0.1
BETWEEN_SEC = 1.0
"""The id of a job that waits for another worker is claimed again so often."""
RENEW_SEC = 30.0
"""Ids of live jobs are claimed again so often: keepers forget the oldest claims first."""
_ELSEWHERE = frozenset({ErrorCode.QUEUE_FULL, ErrorCode.DRAINING, ErrorCode.ENGINE_LOST})
"""Refusals that another worker may not share."""


class TakenOver(Exception):
    """Another router serves the job.

    Attributes:
        claim: its claim.
    """

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim)
        self.claim = claim


class Placing:
    """Places jobs for one router."""

    def __init__(self, router: str, peers: Peers, mirrors: Mirrors, stopping: Stopping, tasks: Tasks) -> None:
        self.warm = WarmPrefixes()
        self._router = router
        self._peers = peers
        self._mirrors = mirrors
        self._stopping = stopping
        self._tasks = tasks
        self._renewed_at = now().mono

    async def place(
        self,
        mirrors: Sequence[Mirror],
        headers: Mapping[str, str] = NO_HEADERS,
        retry_of: StopRequest | None = None,
        *,
        requeued: bool = False,
    ) -> Choice:
        """Hand the jobs of one request to a worker, all or none, and follow them there.

        `requeued`: another worker had them, and died. They wait for a slot only if no worker has a free one: other
        routers place that worker's jobs in the same moment, so loads as they were reported say little.

        Raises:
            JobError: no worker takes them.
            TakenOver: as `requeue`.
        """
        refusal = nobody_takes_jobs([remote.state for remote in self._peers])
        passed: set[str] = set()
        may_wait = not requeued
        second: asyncio.Task[JobError | TakenOver | None] | None = None
        while True:
            choice, may_wait = self._next(mirrors[0], passed, may_wait)
            remote = None if choice is None else self._peers.get(choice.worker)
            if choice is None or remote is None:
                await self._release([] if requeued else mirrors, second)
                raise refusal
            passed.add(choice.worker)
            claimed = False
            _attempt(mirrors, remote)
            try:
                await self._claim(mirrors, remote.name)
                claimed = True
                second = self._tasks.spawn(self._confirm(mirrors, remote.name))
                if any(mirror.overtaken for mirror in mirrors):
                    await asyncio.wait({second})
                routed = Routed(
                    self._router, choice, requeued, mirrors[0].term, mirrors[0].attempts, may_wait
                )
                updates = await self._hand_over(mirrors, remote, routed, headers, retry_of)
                other = await second
            except JobError as error:
                if not claimed or error.code not in _ELSEWHERE:
                    await self._release([] if requeued else mirrors, second)
                    raise
                refusal = error
            except PeerLost:
                continue
            except PeerSilent:
                self._withdraw(mirrors, remote)
            except asyncio.CancelledError:
                self._withdraw(mirrors, remote)
                raise
            else:
                if self._peers.get(remote.name) is not remote:
                    continue  # It has died meanwhile.
                if isinstance(other, JobError):
                    self._withdraw(mirrors, remote)
                    await self._release([] if requeued else mirrors, second)
                    raise other
                self._accepted(mirrors, remote, updates, other)
                return choice

    async def requeue(self, mirror: Mirror) -> None:
        """The worker of a job is dead, and this router serves the job: it goes on at another worker, after its tokens
        so far, unless it ends.

        Raises:
            TakenOver: another router serves it, and sees to that.
        """
        job, was_running = mirror.job, mirror.job.state is State.RUNNING
        if mirror.stop is not None:
            job.request_stop(mirror.stop)
        if job.live:
            job.engine_lost(now())
        if job.live:
            job.deaths += was_running
            if job.deaths >= MAX_DEATHS:
                message = f"Workers or engines died {job.deaths} times with this job"
                job.failed(now(), JobError(ErrorCode.ENGINE_LOST, message), freed_now())
        while job.live:
            try:
                await self.place([mirror], requeued=True)
            except JobError:
                if now().mono > job.deadline:
                    job.request_stop(StopRequest(StopReason.TIMEOUT, now().mono, job.correlation_id))
                    break
                if now().mono - mirror.claimed_at > BETWEEN_SEC:
                    await self._confirm([mirror], "", range(KEEPERS))
                await asyncio.sleep(RETRY_SEC)
            else:
                return
        self._mirrors.end(mirror)

    async def claim_again(self, mirror: Mirror) -> None:
        """The keepers of a job's id may be others by now."""
        for place in range(KEEPERS):
            if mirror.job.live and mirror.worker is not None:
                await self._confirm([mirror], mirror.worker, [place])

    async def claim_all_again(self, keeper: Remote | None = None, age_sec: float = 0.0) -> None:
        """Claim the ids of the jobs that this router serves again, if `keeper` keeps them (None: whoever does), and if
        they were claimed so long ago."""
        for mirror in self._mirrors:
            old = mirror.serves and now().mono - mirror.claimed_at >= age_sec
            if old and (keeper is None or self._peers.keeps(keeper, mirror.job.key)):
                await self.claim_again(mirror)

    def renew(self) -> None:
        """Claim the ids of old jobs again, if it is time."""
        if now().mono - self._renewed_at > RENEW_SEC:
            self._renewed_at = now().mono
            self._tasks.spawn(self.claim_all_again(age_sec=RENEW_SEC / 2))

    def _next(self, mirror: Mirror, passed: set[str], may_wait: bool) -> tuple[Choice | None, bool]:
        """The next worker to try, and whether the job may wait there: not before enough are `passed`."""
        choice = self._choice(mirror.job, passed | mirror.withdrawn)
        if may_wait or (choice and len(passed) < MAX_ASKED):
            return choice, may_wait
        passed.clear()
        return self._choice(mirror.job, mirror.withdrawn), True

    def _choice(self, job: Job, passed: set[str]) -> Choice | None:
        loads = {
            remote.name: remote.load
            for remote in self._peers
            if remote.name not in passed and not remote.silent and remote.state and remote.state.takes_jobs
        }
        return choose(loads, self.warm, chain_of(job.request, job.owner)) if loads else None

    def _withdraw(self, mirrors: Sequence[Mirror], remote: Remote) -> None:
        """The worker may have accepted the jobs, or may still do so: nobody wants them there any more."""
        for mirror in mirrors:
            mirror.withdrawn.add(remote.name)
            sent = self._stopping.disown(remote, mirror.job.incarnation, mirror.attempts)
            sent.add_done_callback(partial(mirror.not_at, remote.name))

    async def _hand_over(
        self,
        mirrors: Sequence[Mirror],
        remote: Remote,
        routed: Routed,
        headers: Mapping[str, str],
        retry_of: StopRequest | None,
    ) -> list[JobUpdate]:
        job = mirrors[0].job
        copies = [replace(whole(mirror.job, now()), stop=mirror.stop) for mirror in mirrors]
        updates: list[JobUpdate] = await remote.call(
            "execute",
            routed,
            [mirror.job.request for mirror in mirrors],
            copies,
            job.correlation_id,
            job.owner,
            dict(headers),
            retry_of,
        )
        return updates

    def _accepted(
        self,
        mirrors: Sequence[Mirror],
        remote: Remote,
        updates: Sequence[JobUpdate],
        taken: TakenOver | None,
    ) -> None:
        """A worker has accepted the jobs. `taken`: another router has one meanwhile; raised."""
        if taken is not None:
            if taken.claim.worker != remote.name:
                self._withdraw(mirrors, remote)
            raise taken
        self._placed(mirrors, remote, updates)
        job = mirrors[0].job
        self.warm.sent(remote.name, chain_of(job.request, job.owner))

    def _placed(self, mirrors: Sequence[Mirror], remote: Remote, updates: Sequence[JobUpdate]) -> None:
        for mirror, update in zip(mirrors, updates, strict=True):
            mirror.worker, mirror.placing = remote.name, False
            early, mirror.early = mirror.early, []
            if not mirror.job.live:  # It was stopped meanwhile.
                self._stopping.send(mirror)
                continue
            self._mirrors.apply(mirror, update)
            for worker, later in early:
                if worker == remote.name:
                    self._mirrors.apply(mirror, later)
            if mirror.stop is not None and mirror.job.live:
                self._stopping.send(mirror)  # It came after the job was handed over.
            elif mirror.left and not self._mirrors.is_read(mirror):
                job = mirror.job
                self._tasks.try_to(remote.call("client_left", self._router, job.key, job.incarnation))

    async def _claim(self, mirrors: Sequence[Mirror], worker: str) -> None:
        """Claim the ids of jobs.

        Raises:
            JobError: `JOB_ID_IN_USE`.
            TakenOver: as `requeue`.
        """
        verdicts = await asyncio.gather(
            *(self._claim_one(mirror, worker, 0) for mirror in mirrors), self._claim_names(mirrors, 0)
        )
        if not all(verdicts):
            raise id_in_use()

    async def _confirm(
        self, mirrors: Sequence[Mirror], worker: str, places: Sequence[int] = range(1, KEEPERS)
    ) -> JobError | TakenOver | None:
        """Claim the ids at their other keepers, too. Returns why that fails: one of them knows of another job with an
        id, or of another worker for a job."""
        try:
            granted = [await self._claim_one(mirror, worker, place) for mirror in mirrors for place in places]
            for place in places:
                await self._claim_names(mirrors, place)
        except TakenOver as taken:
            return taken
        for mirror in mirrors:
            overtaken, mirror.overtaken = mirror.overtaken, None
            if overtaken is not None and not mirror.use:
                self._stopping.stop(mirror, StopReason.CLIENT, overtaken.correlation_id or "")
        return None if all(granted) else id_in_use()

    async def _claim_one(self, mirror: Mirror, worker: str, place: int) -> bool:
        """Claim a job's id at one of its keepers; if that one does not answer, at the next. Returns whether it is
        granted, or nobody can say.

        Raises:
            JobError: neither of the keepers answers that may know of another job with this id.
            TakenOver: as `requeue`.
        """
        job, key, was_at = mirror.job, mirror.job.key, mirror.worker
        mirror.claimed_at = now().mono
        for keeper in self._peers.keepers(key)[place:]:
            if mirror.worker != was_at:
                return True  # It has left the worker meanwhile.
            if not (place or mirror.granted or self._peers.keeps(keeper, key)):
                break
            try:
                verdict = await self._verdict(keeper, mirror, worker)
            except (PeerLost, PeerSilent):
                continue
            if verdict.held_by is not None:
                for other in self._peers.keepers(key)[:place]:
                    self._tasks.try_to(other.call("claim", key, verdict.held_by, job.incarnation))
                return False
            mirror.granted = True
            mirror.use = max(mirror.use, verdict.use)
            mirror.overtaken = mirror.overtaken or verdict.cancelled
            return True
        if place or mirror.granted:
            return True
        raise keepers_silent()

    async def _verdict(self, keeper: Remote, mirror: Mirror, worker: str) -> Verdict:
        """What a keeper says to a claim, after earlier uses of the id are known to be over."""
        job, key = mirror.job, mirror.job.key
        age_sec = now().mono - job.accepted.mono
        mirror.sent += 1
        claim = Claim(
            job.incarnation,
            worker,
            job.request.part_of == job.job_id,
            self._router,
            mirror.term,
            age_sec,
            use=mirror.use,
            sent=mirror.sent,
        )
        verdict: Verdict = await keeper.call("claim", key, claim, None)
        held = verdict.held_by
        if held is not None:
            if held.incarnation == job.incarnation:
                raise TakenOver(held)
            if await self._is_live(mirror, held, verdict.held_sec):
                return verdict
            verdict = await keeper.call("claim", key, claim, held.incarnation)
        return verdict

    async def _claim_names(self, mirrors: Sequence[Mirror], place: int) -> bool:
        """Have keepers know that jobs are parts of requests with other ids, since a cancel of such an id is for them.
        A request's first job, which has its id, may have ended, and keepers may be new. Returns True."""
        own = {mirror.job.job_id for mirror in mirrors}
        parts = {mirror.job.request.part_of: mirror for mirror in mirrors}
        for name, mirror in parts.items():
            if name is None or name in own:
                continue
            key, age_sec = (mirror.job.owner, name), now().mono - mirror.job.accepted.mono
            for keeper in self._peers.keepers(key)[place:]:
                try:
                    verdict: Verdict = await keeper.call(
                        "claim", key, Claim("", "", parts=True, age_sec=age_sec), None
                    )
                except (PeerLost, PeerSilent):
                    continue
                if verdict.cancelled is not None:
                    self._stopping.stop(mirror, StopReason.CLIENT, verdict.cancelled.correlation_id or "")
                break
        return True

    async def _is_live(self, later: Mirror, claim: Claim, held_sec: float) -> bool:
        """Whether the job of another claim is live. Where nobody can say, it is for a while: it may be between two
        workers, and is then claimed again. Where its worker does not answer, it is unless this is a later use."""
        key, mirror = later.job.key, self._mirrors.get(claim.incarnation)
        if mirror is not None and mirror.serves:
            return True
        if not claim.incarnation or self._mirrors.has_ended(key, claim.incarnation):
            return False
        remote = self._peers.get(claim.worker)
        if remote is None:
            return min(held_sec, self._peers.lost_sec(claim.worker)) < GRACE_SEC
        try:
            over: bool | None = await remote.call("is_over", key, claim.incarnation, later.job.incarnation)
        except (PeerLost, PeerSilent):
            return claim.use >= later.use
        return held_sec < GRACE_SEC if over is None else not over

    async def _release(self, mirrors: Sequence[Mirror], second: asyncio.Task[Any] | None) -> None:
        """The jobs were refused: their ids are free, and a cancel that follows is for the refused request. Waits until
        the keepers know, or for a while."""

        async def release() -> None:
            if second is not None:
                await asyncio.wait({second})  # Otherwise a keeper might get the claim after this.
            await answers(
                [
                    keeper.call("refused", mirror.job.key, mirror.job.incarnation)
                    for mirror in mirrors
                    if mirror.granted
                    for keeper in self._peers.keepers(mirror.job.key)[:KEEPERS]
                ]
            )

        await asyncio.wait({self._tasks.spawn(release())}, timeout=KEEPER_SEC)


def _attempt(mirrors: Sequence[Mirror], remote: Remote) -> None:
    remote.sent += len(mirrors)  # Now: others are placed while this one's id is claimed.
    for mirror in mirrors:
        mirror.attempts += 1
