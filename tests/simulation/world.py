"""One history: clients that start, cancel, leave, return and reuse ids, against a worker whose engines fail."""

import asyncio
import contextlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise, product

from tests.fakes import QUICK, HandLoop, run_message
from tests.simulation.clock import VirtualLoop
from tests.simulation.engine import VirtualEngine, Weather
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.events import End, Error, Event, Progress, Started, Token
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.pending_cancels import PendingCancels
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.request import Ceilings, ExecuteRequest
from worker_orcd.jobs.stop_request import StopReason
from worker_orcd.jobs.tracker import RECORDS_KEPT_SEC, JobTracker
from worker_orcd.narration import Narrator
from worker_orcd.sampling import SamplingParams
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.supervisor.supervisor import EngineState
from worker_orcd.worker.health import Status, status_of
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.streams import JobStream, KeepAlive
from worker_orcd.worker.worker import Worker

DEADLINE_SEC = 5.0
TERMINAL_WITHIN_SEC = DEADLINE_SEC + 0.1
FOUND_OUT_SEC = 10.0
MEMORY_SEC = 5.0
IDS = ("a", "a1", "b", "c", "d", "e", "f")
HOSTILE = "mallory"
SMALL_BOUND = 300
"""The bound of stores that all keys share while one attacks. An owner's share is far more than it needs."""
OWNERS = ("anna", "berta")
"""Two keys; their owners use the same ids and groups and must be isolated (G9)."""


@dataclass(eq=False)
class Seen:
    """A job, and the events that each of its readers got."""

    job: Job
    fields: dict[str, object]
    readers: list[list[Event]] = field(default_factory=list)
    cancelled_at: float | None = None
    may_be_cancelled: bool = False
    """Its owner has cancelled this use of the id, by the id or the group."""
    superseded_by: "Seen | None" = None
    """A newer job with the same owner and key."""


class World:
    """A worker, its engines and clients, made from one seed."""

    def __init__(self, seed: int, loop: VirtualLoop, *, attacks: int = 0) -> None:
        """`attacks`: how often a third key attacks the bounds that the keys share; then they are small."""
        self.attacks = attacks
        self.chance = random.Random(seed)
        self.loop = loop
        mood = self.chance.choice(["calm", "deadly", "hanging", "mixed", "unkillable"])
        self.weather = {
            "calm": Weather(aborts=0.1),
            "deadly": Weather(dies=0.02, aborts=0.1, fails_to_start=0.2),
            "hanging": Weather(hangs=0.005, aborts=0.2),
            "mixed": Weather(dies=0.005, hangs=0.002, aborts=0.3, fails_to_start=0.1),
            "unkillable": Weather(hangs=0.005, ignores_kill_sec=9.0),
        }[mood]
        self.engines: list[VirtualEngine] = []
        self.seen: list[Seen] = []
        self.requests: dict[tuple[str, str], float] = {}
        self.refused: set[tuple[str, str]] = set()
        policy = Policy(
            ceilings=Ceilings(max_tokens_out=400, inference_timeout_sec=self.chance.choice([20.0, 300.0])),
            max_queue=self.chance.choice([2, 50]),
            cancel_deadline_sec=DEADLINE_SEC,
            drain_sec=2.0,
        )
        self.prefix_cache = self.chance.random() < 0.8
        narrator = Narrator.configure("worker", log_format="json", stream=io.StringIO())
        self.worker = Worker(policy, self.launch, narrator, worker_id="w", model_path="m", epoch="0")
        if attacks:
            self.worker.dispatcher.tracker = JobTracker(keep=SMALL_BOUND)
            self.worker.dispatcher.remembered = PendingCancels(MEMORY_SEC, bound=SMALL_BOUND)

    async def launch(self, listener: EngineListener) -> Engine:
        """Start the next engine."""
        self.engines.append(
            VirtualEngine(
                listener, self.chance, self.weather, 100 + len(self.engines), prefix_cache=self.prefix_cache
            )
        )
        return self.engines[-1]

    # Clients.

    async def live(self) -> None:
        """The whole history."""
        self.worker.start()
        clients = [asyncio.create_task(self.client()) for _ in range(self.chance.randint(1, 12))]
        watcher = asyncio.create_task(self.watch())
        await asyncio.gather(*clients, self.attack())
        await self.all_ended()
        await asyncio.sleep(12.0)
        self.check_rest()
        if watcher.done():
            watcher.result()
        watcher.cancel()
        await self.worker.drain()

    async def client(self) -> None:
        """A client that does a few things, one after the other."""
        for _ in range(self.chance.randint(1, 5)):
            await asyncio.sleep(self.chance.expovariate(2.0))
            action = self.chance.choices(["run", "cancel", "group", "look"], [6, 3, 1, 1])[0]
            owner = self.chance.choice(OWNERS)
            if action == "run":
                await self.run_a_job(owner)
            elif action == "cancel":
                self.cancel(owner, self.chance.choice(IDS))
            elif action == "group":
                self.cancel_group(owner, "g")
            else:
                self.look(owner, self.chance.choice(IDS))

    async def attack(self) -> None:
        """Fill the stores of cancels, refused requests and ended jobs, while the others work."""
        for number in range(self.attacks):
            self.worker.cancel(f"made-up-{number}", "cor", HOSTILE)
            self.worker.refused(f"refused-{number}", HOSTILE)
            request = ExecuteRequest(job_id=f"ended-{number}", prompt=QUICK, max_tokens=5)
            with contextlib.suppress(JobError):
                self.worker.execute([request], "cor", HOSTILE)
            self.worker.cancel(request.job_id, "cor", HOSTILE)
            if number % 10 == 0:
                await asyncio.sleep(0.02)

    async def run_a_job(self, owner: str) -> None:
        """Start a job and read it; perhaps leave, perhaps resume, perhaps cancel it."""
        fields: dict[str, object] = {
            "job_id": self.chance.choice(IDS),
            "prompt": QUICK + "x" * self.chance.choice([0, 5, 300]),
            "max_tokens": self.chance.choice([1, 5, 40, 150]),
            "seed": self.chance.randint(1, 10**6),
            "temperature": self.chance.choice([0.0, 1.0]),
            "on_disconnect": self.chance.choice(["cancel", "continue"]),
            "group": self.chance.choice([None, "g", "g1"]),
            "timeout_ms": self.chance.choice([None, None, 3000]),
            "cache_prompt": self.chance.random() < 0.9,
            "progress": self.chance.random() < 0.3,
            "priority": self.chance.choice([0, 0, -3, 5]),
            "supersedes": self.chance.choice([None, "k", "k1"]),
            "cache_salt": self.chance.choice([None, None, "salt"]),
        }
        cancelled_at = self.requests.get((owner, str(fields["job_id"])), -100.0)
        older = self.supersedable(owner, fields["supersedes"])
        try:
            (stream,) = self.worker.execute([ExecuteRequest(**fields)], "cor", owner)  # type: ignore[arg-type]
        except JobError as refused:
            assert refused.code in ("JOB_ID_IN_USE", "QUEUE_FULL", "ENGINE_LOST")  # noqa: PT017  # Either is right.
            if refused.code == "QUEUE_FULL":
                self.refused.add((owner, str(fields["job_id"])))
            assert not any(seen.job.stop for seen in older), "a refused job supersedes nothing"
            return
        seen = Seen(stream.job, fields)
        self.seen.append(seen)
        for old in older:
            assert bool(old.job.stop) == stream.job.live, (
                "one survives: the newest, unless it is over already"
            )
            old.superseded_by = seen if stream.job.live else None
        self.requests.pop((owner, stream.job.job_id), None)
        self.refused.discard((owner, stream.job.job_id))
        if self.loop.time() - cancelled_at <= MEMORY_SEC:
            seen.may_be_cancelled = True
            assert [event.name for event in stream.job.events] == ["error"], (
                "a cancel that was here first wins"
            )
        if self.chance.random() < 0.25:
            self.loop.call_later(self.chance.expovariate(1.0), self.cancel_this, seen)
        leaves_after = self.chance.choice([None, None, None, 1, 10])
        await self.read(seen, stream, 0, leaves_after)
        if leaves_after is not None and self.chance.random() < 0.7:
            await asyncio.sleep(self.chance.random())
            again = JobStream(stream.job) if not stream.job.live else stream
            await self.read(seen, again, 0, None, follows=True)

    def supersedable(self, owner: str, key: object) -> list[Seen]:
        """An owner's live jobs with this key, unless they are being stopped."""
        own = [seen for seen in self.seen if seen.job.owner == owner and seen.job.live and not seen.job.stop]
        return [seen for seen in own if key is not None and seen.fields["supersedes"] == key]

    def cancel_this(self, seen: Seen) -> None:
        """Cancel the job by its id, if it is still live."""
        if seen.job.live:
            self.cancel(seen.job.owner, seen.job.job_id)

    def cancel(self, owner: str, job_id: str) -> None:
        """Cancel an id, and record which incarnation is meant."""
        stop_request, now = (owner, job_id), self.loop.time()
        live = any(job.live for job in self.own(owner, job_id))
        known = live or self.worker.dispatcher.tracker.ended(job_id, owner)
        # A cancel that follows a refused request is for that request.
        known = known or stop_request in self.refused
        if not known and now - self.requests.get(stop_request, -100.0) > MEMORY_SEC:
            self.requests[stop_request] = now
        self.note_cancel(lambda seen: (seen.job.owner, seen.job.job_id) == stop_request)
        for _ in range(self.chance.randint(1, 3)):
            self.worker.cancel(job_id, "cor-cancel", owner)

    def cancel_group(self, owner: str, group: str) -> None:
        """Cancel all jobs of an owner in this group."""
        self.note_cancel(lambda seen: seen.job.owner == owner and seen.fields["group"] == group)
        self.worker.cancel_group(group, "cor-group", owner)

    def own(self, owner: str, job_id: str) -> list[Job]:
        """An owner's jobs with this id, as the clients know them."""
        return [seen.job for seen in self.seen if (seen.job.owner, seen.job.job_id) == (owner, job_id)]

    def note_cancel(self, meant: Callable[[Seen], bool]) -> None:
        """Record that the owner of these jobs cancels them."""
        for seen in self.seen:
            if meant(seen) and seen.job.live:
                seen.may_be_cancelled = True
                if seen.cancelled_at is None and not seen.job.stop:
                    seen.cancelled_at = self.loop.time()

    def look(self, owner: str, job_id: str) -> None:
        """No owner sees another's job with the same id."""
        own = self.own(owner, job_id)
        try:
            stream = self.worker.stream_of(job_id, owner)
        except JobError as refused:
            assert refused.code == "JOB_NOT_FOUND"  # noqa: PT017
            assert not any(job.live for job in own), "one's own job is not found"
        else:
            assert stream.job in own[-1:], "another's job is shown (G9)"

    async def read(
        self, seen: Seen, stream: JobStream, start: int, leaves_after: int | None, *, follows: bool = False
    ) -> None:
        """Read the stream from an event on."""
        got: list[Event] = []
        stream.join()
        try:
            keep_alive = KeepAlive(15.0)
            async for batch in stream.read(keep_alive, start):
                keep_alive.sent()
                assert [number for number, _ in batch] == list(range(len(got), len(got) + len(batch)))
                got += [event for _, event in batch]
                if leaves_after is not None and len(got) >= leaves_after:
                    return
                if self.chance.random() < 0.1:
                    await asyncio.sleep(self.chance.random())
            seen.readers.append(got)
        finally:
            if follows:
                stream.leave()
            else:
                self.worker.reader_left(stream)

    # What must hold.

    async def watch(self) -> None:
        """Health is never good while the engine is dead; stopped jobs have their terminal event in time."""
        while True:
            await asyncio.sleep(0.05)
            supervisor = self.worker.supervisor
            engine_lives = bool(self.engines) and not self.engines[-1].dead
            if status_of(self.worker) is Status.HEALTHY:
                assert engine_lives
                assert supervisor.state is EngineState.READY
                assert self.loop.time() - self.engines[-1].hung_at < FOUND_OUT_SEC, (
                    "the hang was not noticed (G11)"
                )
            for owner, key in product(OWNERS, ("k", "k1")):
                assert len(self.supersedable(owner, key)) <= 1, "more than one survives"
            for seen in self.seen:
                if seen.cancelled_at is not None and seen.job.live:
                    assert self.loop.time() - seen.cancelled_at < TERMINAL_WITHIN_SEC, (
                        "five seconds are over (G5)"
                    )

    async def all_ended(self) -> None:
        """Wait until all jobs have ended."""
        until = self.loop.time() + 900
        while any(seen.job.live for seen in self.seen):
            assert self.loop.time() < until, [record_of(seen.job) for seen in self.seen if seen.job.live]
            await asyncio.sleep(0.5)

    def check_rest(self) -> None:
        """Every stream is complete, each reader got it, and nothing is left."""
        for seen in self.seen:
            self.check_stream(seen)
        core = self.worker.dispatcher
        assert (len(core.tracker), len(core.queue), core.queue.running) == (0, 0, 0)
        assert len(self.worker.streams) == 0
        assert b"worker_audit_faults_total 0.0" in self.worker.metrics.render(), (
            "counts of cells that do not agree"
        )
        self.check_records()
        engine = self.engines[-1]
        if not engine.dead and not engine.hung:
            assert self.worker.kv_usage.cells_used == 0
            assert self.worker.kv_usage.cells_cached == engine.cells_in_use

    def check_records(self) -> None:
        """Records and events of jobs that ended within the last five minutes are kept, if their id was not reused."""
        tracker = self.worker.dispatcher.tracker
        latest = {(seen.job.owner, seen.job.job_id): seen.job for seen in self.seen}
        for (owner, job_id), job in latest.items():
            if job.ended_at is not None and self.loop.time() - job.ended_at < RECORDS_KEPT_SEC:
                assert tracker.record(job_id, owner) == record_of(job)
                assert tracker.ended_job(job_id, owner) is job

    def check_stream(self, seen: Seen) -> None:
        """`started progress* token* (end|error)` or `error`; tokens are those of the job alone."""
        events = list(seen.job.events)
        terminal = events[-1]
        assert isinstance(terminal, End | Error)
        assert not any(isinstance(event, End | Error) for event in events[:-1])
        assert len(events) == 1 or isinstance(events[0], Started)
        tokens = [event for event in events if isinstance(event, Token)]
        progress = [event for event in events if isinstance(event, Progress)]
        assert events[1:-1] == progress + tokens
        assert seen.fields["progress"] or not progress
        assert all(0 < two.time_ms - one.time_ms >= 249 for one, two in pairwise(progress)), "too often"
        assert all(one.processed <= two.processed <= two.prompt_tokens for one, two in pairwise(progress))
        assert [event.i for event in tokens] == list(range(len(tokens)))
        assert [event.t for event in tokens] == undisturbed(seen.fields)[: len(tokens)], "not its own tokens"
        if isinstance(terminal, End):
            assert len(tokens) == seen.fields["max_tokens"]
        for got in seen.readers:
            assert got == events, "a reader got something else (G2)"
        if seen.job.receipt is not None:
            if seen.cancelled_at is not None:
                assert seen.job.receipt.terminal_ms <= TERMINAL_WITHIN_SEC * 1000
            if seen.job.receipt.reason is StopReason.CLIENT:
                assert seen.may_be_cancelled, "cancelled without its owner's cancel (G8, G9)"
            superseded = seen.job.receipt.reason is StopReason.SUPERSEDED
            assert superseded == (seen.superseded_by is not None), (
                "superseded by a job of another owner or key (G9)"
            )


_alone: dict[tuple[object, ...], list[str]] = {}


def undisturbed(fields: dict[str, object]) -> list[str]:
    """The texts of a job that is alone in an engine, computed by the real loop."""
    key = (fields["prompt"], fields["max_tokens"], fields["seed"])
    if key not in _alone:
        hand = HandLoop(parallel=1, cells=2000)
        sampling = SamplingParams(seed=int(str(fields["seed"])))
        hand.post(run_message(1, str(fields["prompt"]), max_tokens=fields["max_tokens"], sampling=sampling))
        hand.finish()
        _alone[key] = [out.text for step in hand.steps for out in step.tokens]
        hand.close()
    return _alone[key]
