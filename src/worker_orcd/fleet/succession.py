"""Who sees to a job when its worker or its router has died, or its readers have left.

The router that serves a job hands it to another worker when its worker dies. When that router dies, its place is taken
by one that follows the job for a client that came back, or by any for a job that goes on without a client. Which one,
the job's worker says; if the worker is dead, too, the first of them that claims the job at its keepers.
"""

import asyncio

from worker_orcd.fleet.feeds import LEASE_SEC
from worker_orcd.fleet.following import Following
from worker_orcd.fleet.mirrors import Mirror, Mirrors
from worker_orcd.fleet.peers import PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.placing import Placing, TakenOver
from worker_orcd.fleet.stopping import Stopping
from worker_orcd.fleet.tasks import Tasks
from worker_orcd.fleet.wire import ServeNote
from worker_orcd.jobs.replication import JobUpdate
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.worker.now import now


class Succession:
    """Takes the places of dead workers and routers, for one router."""

    def __init__(  # noqa: PLR0913  # all parts of a router that see to jobs
        self,
        router: str,
        peers: Peers,
        mirrors: Mirrors,
        following: Following,
        placing: Placing,
        stopping: Stopping,
        tasks: Tasks,
    ) -> None:
        self._router = router
        self._peers = peers
        self._tasks = tasks
        self._mirrors = mirrors
        self._following = following
        self._placing = placing
        self._stopping = stopping

    async def go_on(self, mirror: Mirror) -> None:
        """A job's worker is dead, or reports nothing more of it: see to it that the job goes on, or find it again."""
        while mirror.job.live:
            if not mirror.serves:
                if not await self._following.again(mirror):
                    return
                self._serve(mirror, mirror.term + 1)
            try:
                await self._placing.requeue(mirror)
            except TakenOver as taken:
                mirror.serves = False
                mirror.served_by, mirror.term = taken.claim.router, taken.claim.term
            else:
                return

    def inherit(self, remote: Remote, note: ServeNote) -> None:
        """A worker reports that this router is to serve a job. A job that has ended for its readers here is stopped."""
        ended = self._mirrors.ended(note.key)
        if ended is not None and ended.incarnation == note.incarnation:
            self._stopping.disown(remote, note.incarnation)
        else:
            early = self._following.expect(note.incarnation)
            self._tasks.spawn(self._inherit(remote, note, early))

    async def _inherit(self, remote: Remote, note: ServeNote, early: list[JobUpdate]) -> None:
        mirror = await self._following.inherit(remote, note.key, note.incarnation, early)
        if mirror is not None:
            self._serve(mirror, note.term)
            await self._placing.claim_again(mirror)

    def reader_left(self, mirror: Mirror) -> None:
        """A reader has left a job here. If the job's own client has left, too, and nobody reads it here any more, stop
        it, unless its `on_disconnect` is `continue`."""
        job, remote = mirror.job, self._peers.get(mirror.worker)
        if self._mirrors.is_read(mirror):
            return
        if not (mirror.left and mirror.serves):
            self._look_for_readers(mirror)
        elif job.request.on_disconnect == "cancel":
            self._stopping.stop(mirror, StopReason.DISCONNECT, job.correlation_id)
        elif remote is not None:
            self._tasks.try_to(remote.call("client_left", self._router, job.key, job.incarnation))

    def _look_for_readers(self, mirror: Mirror) -> None:
        """Stop an inherited job whose client stays away, as its own router would have, unless it reads elsewhere."""
        needs_client = mirror.job.request.on_disconnect == "cancel"
        if mirror.inherited and needs_client and not self._mirrors.is_read(mirror):
            since = mirror.unread_since = now().mono
            loop = asyncio.get_running_loop()
            loop.call_later(LEASE_SEC, lambda: self._tasks.spawn(self._nobody_reads(mirror, since)))

    def _serve(self, mirror: Mirror, term: int) -> None:
        mirror.served_by, mirror.term = self._router, term
        if mirror.time_limit is None:
            self._stopping.limit(mirror)
        if not mirror.serves:
            mirror.serves = mirror.inherited = True
            self._stopping.see_to(mirror)
            self._look_for_readers(mirror)

    async def _nobody_reads(self, mirror: Mirror, since: float) -> None:
        job, remote = mirror.job, self._peers.get(mirror.worker)
        if mirror.unread_since != since or self._mirrors.is_read(mirror) or not job.live:
            return
        if remote is None:  # It is between two workers.
            self._stopping.stop(mirror, StopReason.DISCONNECT, job.correlation_id)
            return
        try:
            passed_on = await remote.call("unread", self._router, job.key, job.incarnation)
        except (PeerLost, PeerSilent):
            self._look_for_readers(mirror)
            return
        if passed_on:
            mirror.serves = mirror.inherited = False
            if self._mirrors.is_read(mirror):  # A reader came meanwhile.
                await self.go_on(mirror)
            else:
                self._mirrors.drop(mirror)
