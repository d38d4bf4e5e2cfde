"""The interface of observers of jobs and engines: streams, metrics, log events and traces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

from worker_orcd.jobs.job import Job
from worker_orcd.jobs.stop_request import StopRequest
from worker_orcd.jobs.stop_target import Target
from worker_orcd.protocol.messages import AuditFault, NarrationEvent, Percent, Ready, Step
from worker_orcd.supervisor.engine import Death

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A stop request, and its target.

    Attributes:
        stop: the request.
        target: its target.
        job_id: the target's id; None if no live job is in the group.
        group: the request's group, if any.
    """

    stop: StopRequest
    target: Target
    job_id: str | None
    group: str | None = None


class Observer:
    """Receives what happens to jobs and engines. The worker calls these methods in order, on its loop, right after each
    event. Observers override the methods that they need, and must not block."""

    # Jobs.

    def accepted(self, job: Job, headers: Mapping[str, str]) -> None:
        """A job was accepted; `headers` are those of its request."""

    def measured(self, job: Job) -> None:
        """The engine has counted a job's prompt tokens, and they fit."""

    def started(self, job: Job) -> None:
        """A job was started in the engine, for the first time or after a requeue."""

    def progress(self, job: Job) -> None:
        """A job has a progress event."""

    def token(self, job: Job, previous_at: float | None, *, generated: bool) -> None:
        """A job got a token event at `job.last_token_at`. The previous one came at `previous_at`, if there was one.

        `generated`: False for an event that only has text that was held back.
        """

    def preempted(self, job: Job) -> None:
        """A job was preempted and waits again."""

    def stop_requested(self, request: StopRequested) -> None:
        """A stop was requested, of a live job or of another target."""

    def reader_left(self, job: Job) -> None:
        """The last reader of a live job disconnected."""

    def timed_out(self, job: Job) -> None:
        """A job's time limit has passed."""

    def ended(self, job: Job) -> None:
        """A job has its terminal event, and its cells are free."""

    # The engine.

    def loading(self) -> None:
        """The model is about to be loaded."""

    def load_progress(self, percent: Percent) -> None:
        """The first engine has loaded part of the model."""

    def loaded(self, ready: Ready) -> None:
        """The first engine is ready."""

    def restarted(self, pid: int | None, restarts: int, lost_at: float) -> None:
        """A new engine replaces the one that was lost at `lost_at` (monotonic seconds)."""

    def stepped(self, step: Step) -> None:
        """The engine has computed a step."""

    def audit_fault(self, fault: AuditFault, job: Job | None) -> None:
        """An audit of KV cells found a difference. `job`: the live job that it concerns, if any."""

    def narrated(self, event: NarrationEvent) -> None:
        """The engine process wrote a log event."""

    def lost(self, death: Death, jobs: Sequence[Job]) -> None:
        """An engine with these jobs died unexpectedly, or was killed because it was stuck."""

    def permanently_failed(self, reason: str, code: str) -> None:
        """No engine can be started any more."""

    # The worker.

    def draining(self, running: int, queued: int, drain_sec: float) -> None:
        """The drain begins: no further jobs are accepted."""


class Observers:
    """The observers of one worker."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)
        self._concerned: dict[Callable[..., None], list[Callable[..., None]]] = {}
        """The observers' methods, by the method of `Observer` that they override."""

    def add(self, observer: Observer) -> None:
        """Add an observer, from now on."""
        self._observers.append(observer)
        self._concerned.clear()

    def notify(
        self, what: Callable[Concatenate[Observer, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call one method of each observer, for example `notify(Observer.ended, job)`."""
        concerned = self._concerned.get(what)
        if concerned is None:
            concerned = self._concerned[what] = self._overriding(what)
        for method in concerned:
            method(*args, **kwargs)

    def _overriding(self, what: Callable[..., None]) -> list[Callable[..., None]]:
        methods = [getattr(observer, what.__name__) for observer in self._observers]
        return [method for method in methods if getattr(method, "__func__", method) is not what]
