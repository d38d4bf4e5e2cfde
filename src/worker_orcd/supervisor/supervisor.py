"""Keeps one engine running: starts it, sends it stops, detects that it is stuck, kills and restarts it."""

import asyncio
import time
from enum import StrEnum
from typing import Protocol

from worker_orcd.protocol.messages import (
    Accepted,
    Begin,
    FromEngine,
    LoadFailed,
    Measured,
    NarrationEvent,
    Pong,
    Ready,
    Rejected,
    Rendering,
    Step,
    StepCosts,
    Stopped,
    Submit,
    Tokenize,
    Tokenized,
)
from worker_orcd.supervisor.engine import Death, Engine, EngineListener, Launch
from worker_orcd.supervisor.escalation import StopEscalation
from worker_orcd.supervisor.liveness import (
    FIRST_STEP_PATIENCE,
    LOADING_PATIENCE,
    PING_INTERVAL_SEC,
    SILENCE_PATIENCE,
    STEPS_OF_PATIENCE,
    Liveness,
    OwnTime,
    Spent,
)

STARTS_BEFORE_GIVING_UP = 5
"""The most failed starts in a row."""
STEADY_SEC = 2.0
"""An engine that was ready for this long counts as healthy: its successor is started without a pause."""
AWAY_SEC = 0.5
"""A timer that fires this late shows that the front was suspended or stopped."""
HEARING_SEC = 0.1
"""After that, the front reads the engine's messages for this long before it judges the engine."""
_FROM_SIDE_THREADS = (NarrationEvent, Accepted, Tokenized, Rejected, Rendering)
"""Messages of other threads, which may come from an engine whose loop is stuck."""
CRASHES = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV"})
"""Signals of crashes. An engine that crashed while it loaded a model would crash again."""
_FIRST_PAUSE_SEC = 0.1
_LONGEST_PAUSE_SEC = 5.0


class EngineState(StrEnum):
    """The state of the engine."""

    LOADING = "loading"
    READY = "ready"
    STUCK = "stuck"
    LOST = "lost"
    PERMANENTLY_FAILED = "permanently_failed"
    """No engine can be started any more."""


class SupervisorListener(EngineListener, Protocol):
    """Receives engines' messages and deaths, a permanent failure, and stops that are overdue."""

    def on_permanent_failure(self, reason: str, code: str) -> None:
        """No engine can be started any more. `code` is an error code of the API."""

    def held(self) -> tuple[int, ...]:
        """The runs that were handed to the engine and have not ended or been returned."""

    def give_up(self, run: int) -> None:
        """A run's stop was not confirmed by the deadline, not even by the engine's death."""


class Supervisor:
    """The front's only connection to engines. Messages sent while no engine is ready are dropped. The worker, which has
    the jobs, sends them again after the next `Ready`."""

    def __init__(
        self,
        launch: Launch,
        listener: SupervisorListener,
        cancel_deadline_sec: float,
        model: str = "the model",
    ) -> None:
        """`model` names the model in messages."""
        self._launch = launch
        self._model = model
        self._listener = listener
        self._stops = StopEscalation(cancel_deadline_sec)
        self._engine: Engine | None = None
        self._stop_timer: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._liveness_timer: asyncio.TimerHandle | None = None
        self._own_time = OwnTime(time.monotonic())
        self._liveness = Liveness(time.monotonic())
        self._step_sec: float | None = None
        """Predicted duration of the engine's steps; None before the first step."""
        self._pausing = False
        self._failed_starts = 0
        self._short_lives = 0
        self._ready_at = 0.0
        self._closing = False
        self._load_failed: LoadFailed | None = None
        self.state = EngineState.LOADING
        self.restarts = 0
        self.ever_ready = False
        self.step_costs: StepCosts = ()
        """What steps cost, as the first engine measured it."""
        self.reason: str | None = None
        self.failure: LoadFailed | None = None
        self.launched_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return None if self._engine is None else self._engine.pid

    def start(self) -> None:
        """Launch an engine in the background."""
        self._starting = asyncio.create_task(self._start(pause=0.0), name="engine-start")

    def prepare(self, message: Submit | Tokenize) -> None:
        """Have a prompt rendered and tokenized. An earlier engine may already have done that."""
        if self._engine is None:
            return
        if isinstance(message, Tokenize) or message.tokens is None:
            self._liveness.prepare(message.run, time.monotonic())
        self._engine.prepare(message)

    def drop(self, run: int) -> None:
        """Have the engine drop a prompt that is not needed any more."""
        if self._engine is not None:
            self._engine.drop(run)

    def begin(self, message: Begin) -> None:
        """Have a job generated."""
        if self._engine is not None:
            self._engine.begin(message)

    def stop(self, run: int) -> None:
        """Stop a run, and escalate if the stop is not confirmed in time."""
        self._stops.asked(run, time.monotonic())
        if self._engine is not None:
            self._engine.stop(run)
        self._check_stops()

    def kill(self, why: str) -> None:
        """End the engine at once, for good."""
        self._closing = True
        if self._engine is not None:
            self._engine.kill(why)

    async def close(self) -> None:
        """End the engine for good and wait until it is dead."""
        self._closing = True
        if self._starting is not None:
            if self._pausing:
                self._starting.cancel()
            await asyncio.wait([self._starting], timeout=1.0)
            self._starting.cancel()
        for timer in (self._stop_timer, self._liveness_timer):
            if timer is not None:
                timer.cancel()
        if self._engine is not None:
            await self._engine.close()

    # EngineListener

    def on_message(self, message: FromEngine) -> None:
        """Handle a message of the engine."""
        now = time.monotonic()
        if not isinstance(message, _FROM_SIDE_THREADS):
            self._liveness.on_message(now)
        match message:
            case Ready(next_ms=next_ms):
                self._stops.predict(next_ms)
                self._failed_starts = 0
                self._ready_at = now
                self.state = EngineState.READY
                self.ever_ready = True
            case Measured(costs=costs, next_ms=next_ms):
                self.step_costs = costs
                self._stops.predict(next_ms)
                return
            case LoadFailed():
                self._load_failed = message
            case Step(next_ms=next_ms, ended=ended):
                self._step_sec = next_ms / 1000
                self._stops.predict(next_ms)
                for end in ended:
                    self._stops.confirmed(end.run)
            case Accepted(run=run) | Tokenized(run=run) | Rejected(run=run):
                self._liveness.prepared(run, now)
            case Rendering(run=run, slow=slow):
                self._liveness.rendering(run, now, slow=slow)
                return
            case Pong():
                return
            case Stopped(run=run):
                self._stops.confirmed(run)
        self._listener.on_message(message)

    def lost(self, death: Death) -> None:
        """The engine is dead, which confirms all its stops. Start the next one."""
        was_ready = self.state in (EngineState.READY, EngineState.STUCK)
        self._engine = None
        self._stops.engine_lost()
        self.state = EngineState.LOST
        self.reason = death.why
        if self._closing:
            self._listener.lost(death)
            return
        if was_ready:
            steady = time.monotonic() - self._ready_at >= STEADY_SEC
            self._short_lives = 0 if steady else self._short_lives + 1
        else:
            self._failed_starts += 1
        never_will = not self.ever_ready and (self._load_failed is not None or death.signal in CRASHES)
        if never_will or self._failed_starts >= STARTS_BEFORE_GIVING_UP:
            code = "ENGINE_LOST" if self.ever_ready else "MODEL_LOAD_FAILED"
            why = f"{self._model}: the engine cannot be started: {death.why}"
            if not self.ever_ready and death.signal in CRASHES:
                why = f"{self._model}: the engine died of {death.signal} while it loaded the model"
                if death.signal == "SIGILL":
                    why += ": its llama.cpp was built for another CPU; set it up or install it anew"
            failure = self._load_failed or LoadFailed(code, why)
            self.failure = failure
            self.state = EngineState.PERMANENTLY_FAILED
            self.reason = failure.message
            self._listener.lost(death)
            self._listener.on_permanent_failure(failure.message, failure.code)
            return
        self._listener.lost(death)
        in_a_row = self._failed_starts + max(0, self._short_lives - 1)
        pause = min(_FIRST_PAUSE_SEC * 2 ** (in_a_row - 1), _LONGEST_PAUSE_SEC) if in_a_row else 0.0
        self.restarts += 1
        self._starting = asyncio.create_task(self._start(pause), name="engine-start")

    # Internals.

    async def _start(self, pause: float) -> None:
        self._pausing = True
        await asyncio.sleep(pause)
        self._pausing = False
        if self._closing:
            return
        self._load_failed = None
        self.state = EngineState.LOADING
        self.launched_at = time.monotonic()
        self._liveness = Liveness(self.launched_at)
        self._step_sec = None
        try:
            self._engine = await self._launch(self)
        except Exception as error:  # noqa: BLE001  # Any error: without this the worker would stay `loading` for ever.
            self.lost(Death(f"its process cannot be started: {error}"))
            return
        now = time.monotonic()
        self._liveness.on_message(now)
        self._own_time = OwnTime(now)
        self._check_liveness()

    def _check_liveness(self) -> None:
        """Every second: ping the engine, and kill it if it is stuck."""
        if self._liveness_timer is not None:
            self._liveness_timer.cancel()
        self._liveness_timer = None
        engine = self._engine
        if engine is None or self._closing or self.state not in (EngineState.LOADING, EngineState.READY):
            return
        self._advance(engine)
        stuck = self._liveness.stuck(self._patience())
        if stuck is not None:
            if stuck.computing and not self.ever_ready:
                self._load_failed = LoadFailed(
                    "MODEL_LOAD_FAILED", f"{self._model}: the engine cannot load the model: {stuck.why}"
                )
            self._kill_stuck(engine, stuck.why)
            return
        engine.ping(self._listener.held())
        self._liveness_timer = asyncio.get_running_loop().call_later(PING_INTERVAL_SEC, self._check_liveness)

    def _advance(self, engine: Engine) -> None:
        """Report the engine's activity to all time measurements."""
        now = time.monotonic()
        spent = self._own_time.advance(now, engine.activity())
        self._liveness.advance(spent, now)
        self._stops.advance(spent, now)

    def _patience(self) -> Spent:
        if self.state is EngineState.LOADING:
            return LOADING_PATIENCE
        if self._step_sec is None:
            return FIRST_STEP_PATIENCE
        return SILENCE_PATIENCE.at_least(STEPS_OF_PATIENCE * self._step_sec)

    def _kill_stuck(self, engine: Engine, why: str) -> None:
        self.state = EngineState.STUCK
        self.reason = why
        engine.kill(why)

    def _check_stops(self) -> None:
        """Judge the engine by its unconfirmed stops, act, and schedule the next check."""
        if self._stop_timer is not None:
            self._stop_timer.cancel()
            self._stop_timer = None
        now = time.monotonic()
        verdict = self._stops.verdict(now)
        for run in verdict.given_up:
            self._listener.give_up(run)
        if verdict.stuck and self._engine is not None and self.state is not EngineState.STUCK:
            self._kill_stuck(self._engine, "it does not confirm a stop")
        if verdict.look_again_at is not None:
            due = max(now + 0.001, verdict.look_again_at)
            loop = asyncio.get_running_loop()
            self._stop_timer = loop.call_later(due - now, self._stop_check_due, due)

    def _stop_check_due(self, due: float) -> None:
        """Check the stops. If the timer fired late, the front itself was suspended, and confirmations may still be in
        the socket."""
        if time.monotonic() - due < AWAY_SEC:
            self._check_stops_now()
        else:
            self._stop_timer = asyncio.get_running_loop().call_later(HEARING_SEC, self._check_stops_now)

    def _check_stops_now(self) -> None:
        if self._engine is not None:
            self._advance(self._engine)
        self._check_stops()
