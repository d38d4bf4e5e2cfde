"""Stops: a client's cancel finds its job from any router; a stop that no worker confirms is ended here in time."""

import asyncio
from collections.abc import Sequence

from worker_orcd.fleet.keepers import KEEPERS, Claim
from worker_orcd.fleet.mirrors import Mirror, Mirrors, stop_here
from worker_orcd.fleet.peers import PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.tasks import Tasks, answers
from worker_orcd.fleet.wire import StopNote
from worker_orcd.jobs.clock import Timestamp
from worker_orcd.jobs.job import JobKey
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.worker.now import now

NO_ANSWER = "no answer"
Answer = tuple[Claim | str | None, bool]
"""A keeper's answer to a cancel: the use of the id, and whether the keeper has stopped its job."""
KEEPER_SEC = 0.5
"""How long a keeper may take to answer a cancel, before all workers are asked for the job."""
AGAIN_SEC = 0.1
FIND_SEC = 1.0
"""How long workers may take to say whether they have a job."""
SECOND_LOOK_SEC = 0.1
"""A stop that a worker has not reported so soon is sent to it again, by the router that serves the job."""
MARGIN_SEC = 0.5
"""A stop that is not confirmed is ended so long before the cancel deadline."""


class Stopping:
    """Stops jobs for one router."""

    def __init__(self, peers: Peers, mirrors: Mirrors, tasks: Tasks, deadline_sec: float) -> None:
        self._peers = peers
        self._mirrors = mirrors
        self._tasks = tasks
        self._deadline_sec = deadline_sec

    async def cancel(self, key: JobKey, correlation_id: str, recorded: asyncio.Event) -> None:
        """Carry out a client's cancel, again until those that have to know of it have answered, or are dead. Sets
        `recorded` as soon as another process has it."""
        accepted, age_sec = now(), 0.0
        while age_sec < self._deadline_sec:
            if await self._cancelled(key, correlation_id, recorded, accepted, age_sec):
                return
            await asyncio.sleep(AGAIN_SEC)
            age_sec = now().mono - accepted.mono

    async def _cancelled(
        self, key: JobKey, correlation_id: str, recorded: asyncio.Event, accepted: Timestamp, age_sec: float
    ) -> bool:
        """Try to carry out a client's cancel, `age_sec` after it was accepted. Returns whether all is done.

        Its keepers know which use of the id it is for, or remember it. Both are asked: one may be dead, or new. A
        keeper that has the job stops it; a worker that is no keeper gets the stop meanwhile, if the job's copy is here.
        """
        keepers, remember = self._peers.keepers(key)[:KEEPERS], not recorded.is_set()
        asked = {
            keeper.name: self._tasks.spawn(self._ask(keeper, key, correlation_id, place, age_sec, remember))
            for place, keeper in enumerate(keepers)
        }
        mirror = self._mirrors.live(key)
        if mirror is not None and mirror.job.accepted.mono > accepted.mono:
            mirror = None
        stopping: asyncio.Task[bool] | None = None
        if mirror is not None and mirror.worker not in asked and mirror.stop is None:
            stopping = self._tasks.spawn(
                self._stop_at(mirror.worker, key, mirror.job.incarnation, correlation_id)
            )
        known, unsure = None, not keepers
        for answer in asyncio.as_completed(asked.values()):
            claim, _ = await answer
            if isinstance(claim, str):
                unsure = True
            else:
                recorded.set()
            if isinstance(claim, Claim):
                known = claim
                break  # A keeper that does not answer holds up no cancel that the other one knows about.
        if known is None and unsure:
            known = await self._searched(key, accepted)
        if known is None:
            return not unsure
        self._tasks.spawn(self._correct(keepers, list(asked.values()), key, known))
        self.noted(StopNote(key, known.incarnation, correlation_id, known.parts))
        if known.parts:
            calls = [remote.call("stop_parts", key, correlation_id, age_sec) for remote in self._peers]
            return len(await answers(calls)) == len(calls)
        if stopping is not None and mirror is not None and mirror.job.incarnation == known.incarnation:
            return await stopping
        if known.worker in asked and (await asked[known.worker])[1]:
            return True
        return await self._stop_at(known.worker, key, known.incarnation, correlation_id)

    async def _stop_at(self, worker: str | None, key: JobKey, incarnation: str, correlation_id: str) -> bool:
        """Stop a job at its worker. Returns whether the worker has answered or is dead."""
        remote = self._peers.get(worker)
        if remote is None:
            return worker is None or self._peers.has_lost(worker)
        try:
            await remote.call("stop", key, incarnation, StopReason.CLIENT, correlation_id)
        except PeerLost:
            return True
        except PeerSilent:
            return False
        return True

    async def _ask(self, keeper: Remote, *arguments: object) -> Answer:
        try:
            answer: tuple[Claim, bool] | None = await keeper.call(
                "cancel", *arguments, patience_sec=KEEPER_SEC
            )
        except (PeerLost, PeerSilent):
            return NO_ANSWER, False
        return answer or (None, False)

    async def _correct(
        self,
        keepers: Sequence[Remote],
        asked: Sequence[asyncio.Task[Answer]],
        key: JobKey,
        known: Claim,
    ) -> None:
        """A keeper that does not know what the other one does now remembers a cancel that is carried out already."""
        for keeper, answer in zip(keepers, asked, strict=True):
            if (await answer)[0] is None:
                await answers([keeper.call("claim", key, known, None)])

    async def _searched(self, key: JobKey, accepted: Timestamp) -> Claim | None:
        """The live use of an id, without its keepers, unless it is younger than the cancel."""
        mirror = self._mirrors.live(key)
        if mirror is not None and mirror.job.accepted.mono <= accepted.mono:
            return Claim(
                mirror.job.incarnation, mirror.worker or "", router=mirror.served_by, term=mirror.term
            )
        return await live_use(self._peers, key, accepted.unix)

    def noted(self, note: StopNote) -> None:
        """A client has cancelled a job. The router that serves it ends it if no worker does."""
        if note.parts:
            owner, request_id = note.key
            for mirror in self._mirrors:
                job = mirror.job
                if job.owner == owner and job.request.part_of == request_id:
                    self.stop(mirror, StopReason.CLIENT, note.correlation_id, send=mirror.worker is None)
            return
        found = self._mirrors.get(note.incarnation)
        if found is not None:
            self.stop(found, StopReason.CLIENT, note.correlation_id, send=False)

    def stop(self, mirror: Mirror, reason: StopReason, correlation_id: str, *, send: bool = True) -> None:
        """Stop a job whose copy is here; unless `send`, another router tells its worker."""
        if mirror.stop is not None or not mirror.job.live:
            return
        mirror.stop = StopRequest(reason, now().mono, correlation_id)
        if send:
            self.send(mirror)
        if not mirror.serves:
            return
        if mirror.worker is None and mirror.job.state is State.QUEUED and mirror.job.events:
            self._end(mirror)  # It is between two workers.
            return
        self.see_to(mirror)

    def see_to(self, mirror: Mirror) -> None:
        """Repeat a stop that the job's worker does not confirm, and end the job itself in the end."""
        if mirror.stop is not None and mirror.overdue is None:
            loop = asyncio.get_running_loop()
            mirror.overdue = loop.call_later(SECOND_LOOK_SEC, self._second_look, mirror)

    def send(self, mirror: Mirror) -> None:
        """Tell the worker of a stop."""
        remote, stop, job = self._peers.get(mirror.worker), mirror.stop, mirror.job
        if remote is None or stop is None:
            return
        if stop.reason is StopReason.DISCONNECT:
            self._tasks.try_to(remote.call("client_left", job.key, job.incarnation))
        else:
            self._tasks.try_to(
                remote.call("stop", job.key, job.incarnation, stop.reason, stop.correlation_id or "")
            )

    def _second_look(self, mirror: Mirror) -> None:
        if mirror.job.stop is None:
            self.send(mirror)
        left = self._deadline_sec - MARGIN_SEC - SECOND_LOOK_SEC
        mirror.overdue = asyncio.get_running_loop().call_later(left, self._end, mirror)

    def _end(self, mirror: Mirror) -> None:
        """No worker has the job, or none that answers: say so to its readers."""
        if mirror.stop is not None and mirror.job.live:
            stop_here(mirror, mirror.job.stop or mirror.stop)
            self._mirrors.end(mirror)


async def live_use(peers: Peers, key: JobKey, before: float) -> Claim | None:
    """The live use of an id that was accepted before a time (Unix), by asking all workers."""
    found, _ = await peers.ask("find", key, patience_sec=FIND_SEC)
    return next(
        (
            Claim(use.incarnation, remote.name, router=use.served_by, term=use.term)
            for remote, use in found
            if use.live and use.accepted_unix <= before
        ),
        None,
    )
