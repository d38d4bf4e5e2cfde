"""Places jobs at workers: claims their ids, hands them over, and hands them to another worker when theirs dies."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from worker_orcd.fleet.keepers import KEEPERS, Claim, Verdict
from worker_orcd.fleet.mirrors import Mirror, Mirrors, freed_now
from worker_orcd.fleet.peers import PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.routing import Choice, Routed, WarmPrefixes, chain_of, choose
from worker_orcd.fleet.stopping import Stopping
from worker_orcd.fleet.tasks import Tasks
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.replication import JobUpdate, whole
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.jobs.suspects import MAX_DEATHS
from worker_orcd.worker.health import Status
from worker_orcd.worker.interface import NO_HEADERS
from worker_orcd.worker.now import now

GRACE_SEC = 3.0
"""An id whose worker has died stays in use so long: its job may be about to go on elsewhere."""
RETRY_SEC = 0.1
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

    async def place(
        self,
        mirrors: Sequence[Mirror],
        headers: Mapping[str, str] = NO_HEADERS,
        retry_of: StopRequest | None = None,
        *,
        requeued: bool = False,
    ) -> Choice:
        """Hand the jobs of one request to a worker, all or none, and follow them there.

        `requeued`: another worker had them, and died.

        Raises:
            JobError: no worker takes them.
            TakenOver: as `requeue`.
        """
        first = mirrors[0].job
        refusal = self._nobody()
        passed: set[str] = set()
        while True:
            choice = self._choice(first, passed | mirrors[0].withdrawn)
            remote = None if choice is None else self._peers.get(choice.worker)
            if choice is None or remote is None:
                await self._release(mirrors, refusal)
                raise refusal
            passed.add(choice.worker)
            remote.sent += len(mirrors)  # Now: others are placed while this one's id is claimed.
            for mirror in mirrors:
                mirror.attempts += 1
            try:
                await self._claim(mirrors, remote.name)
                second = self._tasks.spawn(self._confirm(mirrors, remote.name))
                routed = Routed(self._router, choice, requeued, mirrors[0].term, mirrors[0].attempts)
                updates = await self._hand_over(mirrors, remote, routed, headers, retry_of)
                other = await second
            except JobError as error:
                if error.code not in _ELSEWHERE:
                    await self._release(mirrors, error)
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
                await asyncio.sleep(RETRY_SEC)
            else:
                return
        self._mirrors.end(mirror)

    async def claim_again(self, mirror: Mirror) -> None:
        """The keepers of a job's id may be others by now."""
        worker = mirror.worker
        if worker is not None and mirror.job.live:
            await self._confirm([mirror], worker, first=0)

    # Inside.

    def _nobody(self) -> JobError:
        """Why no worker takes jobs."""
        states = [remote.state for remote in self._peers]
        if states and all(state and state.health.status is Status.DRAINING for state in states):
            return JobError(ErrorCode.DRAINING, "the workers are shutting down", retry_after_sec=5)
        return no_worker()

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
            sent.add_done_callback(partial(_confirmed, mirror, remote.name))

    async def _hand_over(
        self,
        mirrors: Sequence[Mirror],
        remote: Remote,
        routed: Routed,
        headers: Mapping[str, str],
        retry_of: StopRequest | None,
    ) -> list[JobUpdate]:
        job, moment = mirrors[0].job, now()
        copies = [whole(mirror.job, moment) for mirror in mirrors]
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
        other: JobError | TakenOver | None,
    ) -> None:
        """A worker has accepted the jobs. `other`: another use or router has an id meanwhile; raised."""
        first = mirrors[0].job
        if isinstance(other, TakenOver):
            if other.claim.worker != remote.name:
                self._withdraw(mirrors, remote)
            raise other
        self._placed(mirrors, remote, updates)
        self.warm.sent(remote.name, chain_of(first.request, first.owner))
        if other is not None:
            for mirror in mirrors:
                self._stopping.stop(mirror, StopReason.DISCONNECT, first.correlation_id)
            raise other

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
            if mirror.stop is not None:
                self._stopping.send(mirror)
            elif mirror.left:
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
            raise in_use()

    async def _confirm(
        self, mirrors: Sequence[Mirror], worker: str, first: int = 1
    ) -> JobError | TakenOver | None:
        """Claim the ids at their other keepers, too. Returns why that fails: one of them knows of another job with an
        id, or of another worker for a job."""
        try:
            granted = [
                await self._claim_one(mirror, worker, place)
                for mirror in mirrors
                for place in range(first, KEEPERS)
            ]
            for place in range(first, KEEPERS):
                await self._claim_names(mirrors, place)
        except TakenOver as taken:
            return taken
        return None if all(granted) else in_use()

    async def _claim_one(self, mirror: Mirror, worker: str, place: int) -> bool:
        """Claim a job's id at one of its keepers; if that one does not answer, at the next. Returns whether it is
        granted, or nobody can say."""
        job, key = mirror.job, mirror.job.key
        age_sec = now().mono - job.accepted.mono
        parts = job.request.part_of == job.job_id
        claim = Claim(job.incarnation, worker, parts, self._router, mirror.term, age_sec)
        for keeper in self._peers.keepers(key)[place:]:
            try:
                verdict: Verdict = await keeper.call("claim", key, claim, None)
                if verdict.held_by is not None:
                    if verdict.held_by.incarnation == job.incarnation:
                        raise TakenOver(verdict.held_by)
                    if await self._is_live(key, verdict.held_by, verdict.held_sec):
                        return False
                    verdict = await keeper.call("claim", key, claim, verdict.held_by.incarnation)
            except (PeerLost, PeerSilent):
                continue
            if verdict.cancelled is not None:
                self._stopping.stop(mirror, StopReason.CLIENT, verdict.cancelled.correlation_id or "")
            return verdict.held_by is None
        return True

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

    async def _is_live(self, key: JobKey, claim: Claim, held_sec: float) -> bool:
        """Whether the job of another claim is live. Where nobody can say, it is, for a while: it may be on its way to
        its worker, or from a worker that has died to another one."""
        mirror = self._mirrors.get(claim.incarnation)
        if mirror is not None and mirror.serves and mirror.worker is None:
            return True
        remote = self._peers.get(claim.worker)
        if remote is None:
            return self._peers.lost_sec(claim.worker) < GRACE_SEC
        try:
            over: bool | None = await remote.call("is_over", key, claim.incarnation)
        except (PeerLost, PeerSilent):
            return True
        return held_sec < GRACE_SEC if over is None else not over

    async def _release(self, mirrors: Sequence[Mirror], error: JobError) -> None:
        """The jobs were refused: their ids are free, and a cancel that follows is for the refused request."""
        if error.code is ErrorCode.JOB_ID_IN_USE:
            return
        for mirror in mirrors:
            if not mirror.job.events:
                for keeper in self._peers.keepers(mirror.job.key)[:KEEPERS]:
                    self._tasks.try_to(keeper.call("refused", mirror.job.key, mirror.job.incarnation))


def _confirmed(mirror: Mirror, worker: str, _: object) -> None:
    mirror.withdrawn.discard(worker)


def no_worker() -> JobError:
    """No worker can be reached."""
    return JobError(
        ErrorCode.ENGINE_LOST, "no worker of the fleet can be reached", http_status=503, retry_after_sec=1
    )


def in_use() -> JobError:
    """Another live job has this id."""
    return JobError(ErrorCode.JOB_ID_IN_USE, "a live job has this job_id", param="job_id")
