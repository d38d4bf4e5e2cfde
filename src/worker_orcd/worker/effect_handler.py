"""Carries out the core's effects: messages to the engine, and notifications of observers."""

from collections.abc import Callable, Iterable

from worker_orcd.jobs.effects import Begin, Drop, Effect, Ended, SendStop, Submit
from worker_orcd.supervisor.supervisor import Supervisor
from worker_orcd.tool_calls.formats import ToolFormat
from worker_orcd.worker.observer import Observer, Observers, StopRequested
from worker_orcd.worker.wire import to_begin, to_submit


class EffectHandler:
    """Carries out effects for one worker."""

    def __init__(
        self,
        supervisor: Supervisor,
        observers: Observers,
        tool_formats: Callable[[], tuple[ToolFormat, ...]],
    ) -> None:
        """`tool_formats`: how the model of the engine that is ready writes tool calls."""
        self._supervisor = supervisor
        self._tool_formats = tool_formats
        self._notify = observers.notify

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Carry out effects in their order."""
        for effect in effects:
            match effect:
                case Submit(job):
                    self._supervisor.prepare(to_submit(job, self._tool_formats()))
                case Drop(job):
                    self._supervisor.drop(job.run)
                case Begin(job):
                    self._supervisor.begin(to_begin(job))
                case SendStop(job):
                    self._supervisor.stop(job.run)
                case Ended(job):
                    self._notify(Observer.ended, job)

    def carry_out_stop(self, effects: Iterable[Effect], requests: Iterable[StopRequested]) -> None:
        """Carry out the effects of stop requests in this order: first send stops to the engine, because each
        millisecond counts; then notify observers of the requests; then carry out the other effects, such as ends."""
        first: list[Effect] = []
        rest: list[Effect] = []
        for effect in effects:
            (first if isinstance(effect, SendStop) else rest).append(effect)
        self.carry_out(first)
        for request in requests:
            self._notify(Observer.stop_requested, request)
        self.carry_out(rest)
