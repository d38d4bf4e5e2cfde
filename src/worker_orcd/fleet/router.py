"""A router: the HTTP layer's view of a whole fleet, in place of one worker."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from worker_orcd import narration
from worker_orcd.fleet.cancels import Cancel
from worker_orcd.fleet.following import Following, unsure
from worker_orcd.fleet.metrics import RouterMetrics
from worker_orcd.fleet.mirrors import Mirror, Mirrors
from worker_orcd.fleet.peers import Peer, PeerLost, Peers, PeerSilent, Remote
from worker_orcd.fleet.placing import Placing
from worker_orcd.fleet.refusals import no_worker
from worker_orcd.fleet.stopping import Reached, Stopping
from worker_orcd.fleet.succession import Succession
from worker_orcd.fleet.summary import health_of_fleet, merged_metrics, merged_records
from worker_orcd.fleet.tasks import Tasks, answers
from worker_orcd.fleet.wire import DropNote, News, ServeNote, SharedStop, StopNote, WorkerState
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.request import JobRequest
from worker_orcd.jobs.stop_request import StopReason, StopRequest
from worker_orcd.protocol.messages import Ready, Template, Tokenized
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.health import Health
from worker_orcd.worker.interface import NO_HEADERS, Record, WorkerInterface
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.now import later_than, now
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream

RECORD_SEC = 1.0
ANSWER_SEC = 0.2
"""A cancel is answered when a keeper has it, and the job's worker has it too or has had this time: so it is not lost
with this router. Whatever does not answer, it is answered after both times, and goes on in the background."""
LOOK_SEC = 1.0
"""How long workers may take to answer a client that looks at jobs; what is not there by then is left out."""


class Router(WorkerInterface):
    """One router of a fleet."""

    def __init__(
        self, policy: Policy, narrator: narration.Narrator, model_names: ModelNames, name: str
    ) -> None:
        self.name = name
        self._policy = policy
        self._narrator = narrator
        self._model_names = model_names
        self._started = time.monotonic()
        self._started_unix = time.time()
        self._accepted_at = now()
        """The last acceptance. Of jobs that supersede each other, the last accepted one survives."""
        self._metrics = RouterMetrics()
        self._tasks = Tasks(narrator)
        self._peers = Peers(self.name, self)
        self._mirrors = Mirrors(self._metrics)
        self._stopping = Stopping(
            self.name, self._peers, self._mirrors, self._tasks, policy.cancel_deadline_sec
        )
        self._placing = Placing(self.name, self._peers, self._mirrors, self._stopping, self._tasks)
        self._following = Following(self.name, self._peers, self._mirrors)
        self._succession = Succession(
            self.name,
            self._peers,
            self._mirrors,
            self._following,
            self._placing,
            self._stopping,
            self._tasks,
        )

    # The fleet.

    def found(self, peers: Mapping[str, Peer]) -> None:
        """These workers are there."""
        self._peers.add(peers)

    def close(self) -> None:
        """Leave the fleet."""
        self._peers.close()
        self._tasks.close()

    def renew_leases(self) -> None:
        """Tell all workers that this router is alive, though it may be too busy to ask for news. From any thread."""
        self._peers.renew_leases()

    def shut_down(self, why: str) -> None:
        """Drain all workers. The process that started the fleet asks them for this, and then ends the fleet."""
        for remote in self._peers:
            self._tasks.try_to(remote.call("shut_down", why, patience_sec=self._policy.drain_sec + 5))

    def joined(self) -> None:
        """Another worker is there."""
        self._tasks.spawn(self._placing.claim_all_again())

    def news(self, remote: Remote, news: News) -> None:
        """A worker reports."""
        self._placing.renew()
        self._placing.warm.sent(remote.name, news.warm)
        for note in news.notes:
            if isinstance(note, ServeNote):  # First: this router does not have the job yet.
                self._succession.inherit(remote, note)
        for update in news.updates:
            if not self._following.has(update.incarnation, remote):
                if update.incarnation not in news.others:
                    self._stopping.disown(remote, update.incarnation)
                continue
            torn = self._following.updated(remote, update)
            if torn is not None:
                self._tasks.spawn(self._following.again(torn))
        for note in news.notes:
            if isinstance(note, StopNote):
                self._stopping.noted(note)
            elif isinstance(note, SharedStop):
                self._stopping.stop_mirrors(note)
            elif isinstance(note, DropNote):
                self._mirrors.tracker.drop_events_of(note.key, note.incarnation)
        for event, owner in news.events:
            self._narrator.broadcast.emit(event, owner)

    def back(self, remote: Remote) -> None:
        """A worker that was silent answers again."""
        self._tasks.spawn(self._placing.claim_all_again(remote))
        for mirror in self._mirrors.at(remote.name):
            self._tasks.spawn(self._following.again(mirror))

    def failed(self, remote: Remote, error: Exception) -> None:
        """A poll failed unexpectedly."""
        message = f"a poll of worker {remote.name} failed"
        self._narrator.emit(narration.Error.from_exception(error, code="INTERNAL", message=message))

    def lost(self, remote: Remote) -> None:
        """A worker is dead: its jobs go on elsewhere."""
        self._placing.warm.lost(remote.name)
        self._metrics.lost_workers.inc()
        mirrors = self._mirrors.at(remote.name)
        served = sum(mirror.serves for mirror in mirrors)
        self._narrator.emit(narration.WorkerLost(lost_worker=remote.name, jobs=served), owner="")
        for mirror in mirrors:
            mirror.worker = None
            self._tasks.spawn(self._succession.go_on(mirror))
        self._tasks.spawn(self._placing.claim_all_again())

    def _states(self) -> list[WorkerState]:
        return [remote.state for remote in self._peers if remote.state is not None]

    # What all workers share.

    @property
    def policy(self) -> Policy:
        """The operator's limits for jobs."""
        return self._policy

    @property
    def started_unix(self) -> float:
        """When this router was started, Unix time."""
        return self._started_unix

    @property
    def engine(self) -> Ready | None:
        """What one of the engines has said of the model."""
        return next((state.engine for state in self._states() if state.engine), None)

    @property
    def model_names(self) -> ModelNames:
        """Names by which clients may ask for the model."""
        return next((state.model_names for state in self._states()), self._model_names)

    @property
    def recommended_sampling(self) -> Mapping[str, float]:
        """Fields of a job as the model's makers recommend them."""
        return next((state.recommended_sampling for state in self._states()), {})

    @property
    def tool_formats(self) -> tuple[ToolFormat, ...]:
        """How the model writes calls of tools."""
        return next((state.tool_formats for state in self._states() if state.tool_formats), ())

    @property
    def permanently_failed(self) -> bool:
        """Whether no worker can have an engine. Such workers end, and others take their place."""
        return False

    # Clients.

    async def execute(
        self,
        requests: Sequence[JobRequest],
        correlation_id: str,
        owner: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
        retry_of: StopRequest | None = None,
    ) -> list[JobStream]:
        """Accept the jobs of a client's request, all or none, at one worker."""
        moment = self._accepted_at = later_than(self._accepted_at)
        jobs = [
            Job(
                request=request,
                run=self._mirrors.run(),
                incarnation=secrets.token_hex(10),
                correlation_id=correlation_id,
                seed=request.seed_or_drawn(),
                timeout_sec=request.timeout_within(self._policy.ceilings),
                accepted=moment,
                owner=owner,
            )
            for request in requests
        ]
        mirrors = [Mirror(job, serves=True, served_by=self.name, placing=True) for job in jobs]
        streams = [self._mirrors.add(mirror) for mirror in mirrors]
        self._stopping.accepted(mirrors)
        for mirror in mirrors:
            self._stopping.limit(mirror)
        try:
            await self._placing.place(mirrors, headers, retry_of)
        except BaseException:
            for mirror in mirrors:
                self._mirrors.drop(mirror)
            raise
        was_early = jobs[0].stop is not None and not jobs[0].live
        if (name := requests[0].supersedes) is not None and not was_early:
            unix, newer = moment.unix, requests[0].job_id
            shared = SharedStop(
                owner,
                "supersedes",
                name,
                StopReason.SUPERSEDED,
                correlation_id,
                unix,
                superseded_by=newer,
            )
            self._tasks.spawn(self._stopping.stop_shared(shared, Reached()))
        return streams

    async def cancel(self, job_id: str, correlation_id: str, owner: str = "") -> None:
        """Cancel a job for a client, wherever it is."""
        cancel = Cancel((owner, job_id), correlation_id, now())
        cancelling = self._tasks.spawn(self._stopping.cancel(cancel))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECORD_SEC):
                    await cancel.recorded.wait()
            await asyncio.wait({cancelling}, timeout=ANSWER_SEC)
        finally:
            cancel.answered = now().mono

    async def cancel_group(self, group: str, correlation_id: str, owner: str = "") -> list[str]:
        """Cancel the live jobs of a group at all workers. Returns their ids."""
        shared = SharedStop(owner, "group", group, StopReason.CLIENT, correlation_id, now().unix)
        reached = Reached()
        await asyncio.wait(
            {self._tasks.spawn(self._stopping.stop_shared(shared, reached))}, timeout=ANSWER_SEC
        )
        return sorted(reached.stopped)

    async def cancelled_lately(self, job_ids: list[str], owner: str) -> StopRequest | None:
        """A recent client's cancel of one of these jobs, after those that are being stopped have ended."""
        firsts = [
            (keepers[0], job_id) for job_id in job_ids if (keepers := self._peers.keepers((owner, job_id)))
        ]
        claims = await answers(
            [keeper.call("look", (owner, job_id), patience_sec=LOOK_SEC) for keeper, job_id in firsts]
        )
        workers = {claim.worker for claim in claims if claim is not None}
        remotes = [remote for remote in self._peers if remote.name in workers and not remote.silent]
        stops = await answers(
            [remote.call("cancelled_lately", owner, job_ids, patience_sec=LOOK_SEC) for remote in remotes]
        )
        stop: StopRequest | None = next((stop for stop in stops if stop is not None), None)
        if stop is not None:
            await self.receipts(job_ids, owner, self._policy.cancel_deadline_sec)
        return stop

    async def receipts(self, job_ids: list[str], owner: str, patience_sec: float) -> list[Record] | None:
        """Wait until these jobs have ended; None if one has not in that time."""
        until = time.monotonic() + patience_sec
        streams = await asyncio.gather(*(self._stream_or_none(job_id, owner) for job_id in job_ids))
        for stream in streams:
            if stream is not None and not await stream.ended(until):
                return None
        records = [record_of(stream.job) for stream in streams if stream is not None]
        return [record for record in records if record["receipt"] is not None]

    async def _stream_or_none(self, job_id: str, owner: str) -> JobStream | None:
        try:
            return await self.stream_of(job_id, owner)
        except JobError:
            return None

    async def record(self, job_id: str, owner: str) -> Record | None:
        """The record of the latest job with this id, wherever it is."""
        key = (owner, job_id)
        kept = self._mirrors.tracker.record(job_id, owner)
        found, whole = await self._peers.ask("record", key, patience_sec=LOOK_SEC)
        mirror = self._mirrors.live(key)
        own = [record_of(mirror.job)] if mirror is not None else [kept] if kept else []
        lists = [[record] for record in (*(record for _, record in found), *own)]
        merged = merged_records(lists, len(lists))
        if not merged and not whole:
            raise unsure()
        return merged[0] if merged else None

    async def records(self, owner: str, limit: int) -> list[Record]:
        """An owner's records at all workers."""
        calls = [
            remote.call("records", owner, limit, patience_sec=LOOK_SEC)
            for remote in self._peers
            if not remote.silent
        ]
        live = [record_of(mirror.job) for mirror in self._mirrors if mirror.job.owner == owner]
        kept = self._mirrors.tracker.records(owner, limit)
        return merged_records([*await answers(calls), live, kept], limit)

    async def stream_of(self, job_id: str, owner: str = "") -> JobStream:
        """A job's stream, wherever it is."""
        return await self._following.stream_of((owner, job_id))

    async def drop_events(self, job: Job) -> None:
        """Keep the events of an ended job no longer, anywhere."""
        self._mirrors.tracker.drop_events_of(job.key, job.incarnation)
        await self._stopping.everywhere("drop_events", job.key, job.incarnation, within_sec=LOOK_SEC)

    async def tokenize(self, prompt: str, template: Template, correlation_id: str, owner: str) -> Tokenized:
        """The tokens of a prompt, from the worker with the least load."""
        able = [
            remote for remote in self._peers if remote.state and remote.state.engine and not remote.silent
        ]
        if not able:
            raise no_worker()
        remote = min(able, key=lambda one: one.load)
        try:
            answer: Tokenized = await remote.call(
                "tokenize", prompt, template, correlation_id, owner, patience_sec=11.0
            )
        except (PeerLost, PeerSilent):
            raise no_worker() from None
        return answer

    def reader_left(self, stream: JobStream) -> None:
        """The connection of a job's request is closed."""
        stream.leave()
        mirror = self._mirrors.get(stream.job.incarnation)
        if mirror is not None and mirror.serves:
            mirror.left = True
            self._succession.reader_left(mirror)

    def follower_left(self, stream: JobStream) -> None:
        """A follower's connection is closed."""
        stream.leave()
        mirror = self._mirrors.get(stream.job.incarnation)
        if mirror is not None:
            self._succession.reader_left(mirror)

    def stop(self, job: Job, reason: StopReason) -> None:
        """Stop this job."""
        mirror = self._mirrors.get(job.incarnation)
        if mirror is not None:
            self._stopping.stop(mirror, reason, job.correlation_id)

    def refused(self, job_id: str, owner: str = "") -> None:
        """Note a refused request at the keepers of its id."""
        for keeper in self._peers.keepers((owner, job_id))[:2]:
            self._tasks.try_to(keeper.call("refused", (owner, job_id), None))

    def count_refusal(self, code: ErrorCode) -> None:
        """Count a request that was refused."""
        self._metrics.refusals.labels(code.value).inc()

    # Looking at the fleet.

    def health(self, *, operator: bool, private_load: bool) -> Health:
        """Health of all workers together."""
        states = self._states()
        draining = bool(states) and not any(state.takes_jobs for state in states)
        seen = health_of_fleet(self.name, states, time.monotonic() - self._started, draining=draining)
        if operator:
            return seen
        if seen.reason is not None:
            seen = replace(seen, reason="no worker of the fleet is healthy")
        return seen.without_load() if private_load else seen

    async def metrics(self) -> bytes:
        """The metrics of all workers and of this router, by `worker_id`."""
        remotes = [remote for remote in self._peers if not remote.silent]

        async def of(remote: Remote) -> tuple[str, bytes]:
            return remote.name, await remote.call("metrics", patience_sec=LOOK_SEC)

        return merged_metrics(
            [*await answers([of(remote) for remote in remotes]), (self.name, self._metrics.render())]
        )
