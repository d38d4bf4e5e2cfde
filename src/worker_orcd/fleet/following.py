"""Follows jobs that other routers serve, for readers at this one, and finds a job again whose news was interrupted."""

import asyncio

from worker_orcd.fleet.mirrors import Mirror, Mirrors, freed_now, new_copy
from worker_orcd.fleet.peers import PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.stopping import FIND_SEC
from worker_orcd.fleet.tasks import answers
from worker_orcd.fleet.wire import Followed, Found
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job, JobKey
from worker_orcd.jobs.replication import Cursor, JobUpdate, apply
from worker_orcd.worker.now import now
from worker_orcd.worker.streams import JobStream

FIND_AGAIN_SEC = 8.0
"""How long a job is looked for whose worker has died, while the router that serves it is alive."""
RETRY_SEC = 0.1


class Following:
    """Follows jobs for one router."""

    def __init__(self, router: str, peers: Peers, mirrors: Mirrors) -> None:
        self._router = router
        self._peers = peers
        self._mirrors = mirrors
        self._expected: dict[str, list[list[JobUpdate]]] = {}
        """Updates that come before the answer with which they begin, by incarnation, for each call that waits for
        one."""

    async def stream_of(self, key: JobKey) -> JobStream:
        """The stream of the latest job with this id, wherever it is.

        Raises:
            JobError: `JOB_NOT_FOUND`; or `ENGINE_LOST` with 503: a worker that does not answer may have it.
        """
        mirror = self._mirrors.live(key)
        if mirror is not None:
            return self._mirrors.streams.of(mirror.job)
        found: list[tuple[Remote, Found]]
        found, whole = await self._peers.ask("find", key, patience_sec=FIND_SEC)
        kept = self._mirrors.ended(key)
        latest = max(found, key=lambda one: (one[1].live, one[1].accepted_unix), default=None)
        if latest is not None and (kept is None or latest[1].incarnation != kept.incarnation):
            remote, use = latest
            if kept is None or use.live or use.accepted_unix > kept.accepted.unix:
                stream = await self.follow(remote, key, use.incarnation)
                if stream is not None:
                    return stream
                whole = False
        if kept is not None:
            return self._mirrors.streams.of(kept)
        if not whole:
            raise unsure()
        raise JobError(ErrorCode.JOB_NOT_FOUND, "no job with this id is live or remembered")

    async def follow(self, remote: Remote, key: JobKey, incarnation: str) -> JobStream | None:
        """Follow one use of an id at a worker, from its beginning. None: it is not there, or not kept."""
        early = self.expect(incarnation)
        try:
            return await self._follow(remote, key, incarnation, early)
        except (PeerLost, PeerSilent):
            return None
        finally:
            self._forget(incarnation, early)

    async def inherit(
        self, remote: Remote, key: JobKey, incarnation: str, early: list[JobUpdate]
    ) -> Mirror | None:
        """Follow a use of an id that this router is to serve. None: it is not there, or its worker is dead.

        `early`: from `expect`, which was called when the router learnt that it is to serve the job.
        """
        try:
            while True:
                try:
                    await self._follow(remote, key, incarnation, early)
                except PeerSilent:
                    await remote.answering.wait()
                else:
                    return self._mirrors.get(incarnation)
        except PeerLost:
            return None
        finally:
            self._forget(incarnation, early)

    def expect(self, incarnation: str) -> list[JobUpdate]:
        """Collect the updates of a job that this router is about to follow."""
        early: list[JobUpdate] = []
        self._expected.setdefault(incarnation, []).append(early)
        return early

    def has(self, incarnation: str, remote: Remote) -> bool:
        """Whether this router has a job's copy that is at a worker or comes there, or is about to follow the job."""
        mirror = self._mirrors.get(incarnation)
        return incarnation in self._expected if mirror is None else mirror.worker in (None, remote.name)

    def _forget(self, incarnation: str, early: list[JobUpdate]) -> None:
        rest = [other for other in self._expected[incarnation] if other is not early]
        if rest:
            self._expected[incarnation] = rest
        else:
            del self._expected[incarnation]

    async def _follow(
        self, remote: Remote, key: JobKey, incarnation: str, early: list[JobUpdate]
    ) -> JobStream | None:
        followed: Followed | None = await remote.call("follow", self._router, key, incarnation, Cursor())
        if followed is None or self._peers.get(remote.name) is not remote:
            return None
        known = self._mirrors.get(incarnation)
        if known is not None:  # Another reader came at the same time.
            return self._mirrors.streams.of(known.job)
        job = new_copy(followed.request, key[0], self._mirrors.run())
        apply(followed.update, job, now())
        if not job.live:
            return self._mirrors.streams.of(job)
        mirror = Mirror(job, serves=False, worker=remote.name)
        self._served(mirror, followed)
        stream = self._mirrors.add(mirror)
        for update in early:
            self.updated(remote, update)
        return stream

    def _served(self, mirror: Mirror, followed: Followed) -> None:
        """Learn who serves a job. It may be this router: the note that says so may have been lost."""
        if not mirror.serves:
            mirror.served_by, mirror.term = followed.served_by, followed.term
            mirror.serves = mirror.inherited = followed.served_by == self._router

    def updated(self, remote: Remote, update: JobUpdate) -> Mirror | None:
        """A worker reports news of a job. Returns the copy, if something is missing in between."""
        mirror = self._mirrors.get(update.incarnation)
        if mirror is None:
            for early in self._expected.get(update.incarnation, ()):
                early.append(update)
        elif mirror.worker is None:
            mirror.early.append((remote.name, update))
        elif mirror.worker == remote.name:
            try:
                self._mirrors.apply(mirror, update)
            except ValueError:
                return mirror
        return None

    async def again(self, mirror: Mirror) -> bool:
        """Find a job whose news was interrupted, and follow it from where its copy is. Where its worker is dead, the
        router that serves it hands it to another one.

        Returns:
            Whether that router is dead, too: then this one can hand the job over.
        """
        job, until = mirror.job, now().mono + FIND_AGAIN_SEC
        while job.live and now().mono < until:
            own = self._peers.get(mirror.worker)
            for remote in [own] if own else list(self._peers):
                if await self._rejoined(mirror, remote):
                    return False
            if own is None:
                if mirror.serves:
                    return False
                if await self._nobody_serves(mirror):
                    return job.live
            await asyncio.sleep(RETRY_SEC)
        if job.live:
            _fail(job)
            self._mirrors.end(mirror)
        return False

    async def _nobody_serves(self, mirror: Mirror) -> bool:
        """Whether no worker has received anything of late from the router that serves a job."""
        calls = [
            remote.call("is_alive", mirror.served_by, patience_sec=FIND_SEC)
            for remote in self._peers
            if not remote.silent
        ]
        polled = await answers(calls)
        return bool(polled) and not any(polled)

    async def _rejoined(self, mirror: Mirror, remote: Remote) -> bool:
        job = mirror.job
        cursor = Cursor(
            len(job.events), len(job.tokens), len(job.prompt_logprobs), job.prompt_tokens is not None
        )
        try:
            followed: Followed | None = await remote.call(
                "follow", self._router, job.key, job.incarnation, cursor
            )
            if followed is None or self._peers.get(remote.name) is not remote:
                return False
            mirror.worker = remote.name
            self._served(mirror, followed)
            self._mirrors.apply(mirror, followed.update)
        except (PeerLost, PeerSilent, ValueError):
            return False
        return True


def unsure() -> JobError:
    """Nobody who answers has a job: it may be at a worker that does not."""
    message = "a worker of the fleet does not answer, and may have this job"
    return JobError(ErrorCode.ENGINE_LOST, message, http_status=503, retry_after_sec=1)


def _fail(job: Job) -> None:
    """Neither a worker nor another router has it."""
    error = JobError(ErrorCode.ENGINE_LOST, "The job's worker died, and so did the router that served it")
    moment = now()
    if job.stop is None:
        job.engine_lost(moment)
        job.failed(moment, error, freed_now())
    else:
        job.engine_lost(moment)
