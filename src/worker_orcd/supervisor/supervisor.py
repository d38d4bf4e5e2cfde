"""Keeps one engine alive: starts it, asks it to stop jobs, judges it stuck, kills it, starts it again."""

import asyncio
import time
from enum import StrEnum
from typing import Protocol

from worker_orcd.protocol.messages import FromEngine, LoadFailed, Prepare, Ready, Run, Step, Stopped
from worker_orcd.supervisor.engine import Death, Engine, EngineListener, Launch
from worker_orcd.supervisor.ladder import StopLadder

STARTS_BEFORE_GIVING_UP = 5
"""Starts in a row that never became ready."""
_FIRST_PAUSE_SEC = 0.1
_LONGEST_PAUSE_SEC = 5.0


class EngineState(StrEnum):
    """Whether there is an engine to talk to."""

    LOADING = "loading"
    READY = "ready"
    STUCK = "stuck"
    LOST = "lost"
    GONE = "gone"
    """It cannot be brought back."""


class SupervisorListener(EngineListener, Protocol):
    """Who is told of engines: what one says, its death, that its successor could not be had, that a stop is overdue."""

    def gone(self, reason: str, code: str) -> None:
        """There will be no engine any more. `code` is an error code of the contract."""

    def give_up(self, run: int) -> None:
        """This run's stop could not be confirmed by the deadline, not even by the engine's death."""


class Supervisor:
    """The front's one way to an engine. Everything sent while none is ready is dropped: it is sent again by
    whoever holds the jobs, once `heard` brings the next `Ready`."""

    def __init__(self, launch: Launch, listener: SupervisorListener, cancel_deadline_sec: float) -> None:
        self._launch = launch
        self._listener = listener
        self._ladder = StopLadder(cancel_deadline_sec)
        self._engine: Engine | None = None
        self._look: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failed_starts = 0
        self._closing = False
        self._load_failed: LoadFailed | None = None
        self.state = EngineState.LOADING
        self.restarts = 0
        self.ever_ready = False
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

    def prepare(self, message: Prepare) -> None:
        """Have a prompt tokenized."""
        if self._engine is not None:
            self._engine.prepare(message)

    def run(self, message: Run) -> None:
        """Have a job generated."""
        if self._engine is not None:
            self._engine.run(message)

    def stop(self, run: int) -> None:
        """Have a run stopped, and see to it that it is confirmed in time."""
        self._ladder.asked(run, time.monotonic())
        if self._engine is not None:
            self._engine.stop(run)
        self._judge()

    def kill(self, why: str) -> None:
        """End the engine at once, for good."""
        self._closing = True
        if self._engine is not None:
            self._engine.kill(why)

    async def close(self) -> None:
        """End the engine for good and wait until it is dead."""
        self._closing = True
        if self._starting is not None:
            await asyncio.wait([self._starting], timeout=1.0)
            self._starting.cancel()
        if self._look is not None:
            self._look.cancel()
        if self._engine is not None:
            await self._engine.close()

    # EngineListener

    def heard(self, message: FromEngine) -> None:
        """The engine says something."""
        match message:
            case Ready():
                self._failed_starts = 0
                self.state = EngineState.READY
                self.ever_ready = True
            case LoadFailed():
                self._load_failed = message
            case Step(next_ms=next_ms, ended=ended):
                self._ladder.predict(next_ms)
                for end in ended:
                    self._ladder.confirmed(end.run)
            case Stopped(run=run):
                self._ladder.confirmed(run)
        self._listener.heard(message)

    def lost(self, death: Death) -> None:
        """The engine is dead: everything asked of it is confirmed by that, and it is started again."""
        was_ready = self.state in (EngineState.READY, EngineState.STUCK)
        self._engine = None
        self._ladder.engine_lost()
        self.state = EngineState.LOST
        self.reason = death.why
        if self._closing:
            self._listener.lost(death)
            return
        self._failed_starts += 0 if was_ready else 1
        never_will = self._load_failed is not None and not self.ever_ready
        if never_will or self._failed_starts >= STARTS_BEFORE_GIVING_UP:
            code = "ENGINE_LOST" if self.ever_ready else "MODEL_LOAD_FAILED"
            failure = self._load_failed or LoadFailed(code, f"the engine cannot be started: {death.why}")
            self.failure = failure
            self.state = EngineState.GONE
            self.reason = failure.message
            self._listener.lost(death)
            self._listener.gone(failure.message, failure.code)
            return
        self._listener.lost(death)
        pause = 0.0 if was_ready else min(_FIRST_PAUSE_SEC * 2**self._failed_starts, _LONGEST_PAUSE_SEC)
        self.restarts += 1
        self._starting = asyncio.create_task(self._start(pause), name="engine-start")

    # Inside.

    async def _start(self, pause: float) -> None:
        await asyncio.sleep(pause)
        if self._closing:
            return
        self._load_failed = None
        self.state = EngineState.LOADING
        self.launched_at = time.monotonic()
        try:
            self._engine = await self._launch(self)
        except OSError as error:
            self.lost(Death(f"its process cannot be started: {error}"))

    def _judge(self) -> None:
        """Look at the ladder now, act, and come back when the next rung is due."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        now = time.monotonic()
        verdict = self._ladder.verdict(now)
        for run in verdict.given_up:
            self._listener.give_up(run)
        if verdict.stuck and self._engine is not None and self.state is not EngineState.STUCK:
            self.state = EngineState.STUCK
            self.reason = "it does not confirm a stop"
            self._engine.kill(self.reason)
        if verdict.look_again_at is not None:
            delay = max(0.001, verdict.look_again_at - now)
            self._look = asyncio.get_running_loop().call_later(delay, self._judge)
