"""An engine in virtual time: the real loop, planner and text over a scripted model, with injected faults.

A turn is computed when it begins and reported when it would have ended. A stop that arrives meanwhile ends the step,
as an abort would. Aborts themselves are tested by setting the byte before random steps.
"""

import asyncio
import random
from dataclasses import dataclass

from tests.fakes import HandLoop
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import (
    Accepted,
    AuditFault,
    Begin,
    FromEngine,
    Ping,
    Pong,
    Ready,
    Started,
    Step,
    Stop,
    Stopped,
    Submit,
    Tokenize,
)
from worker_orcd.supervisor.engine import Death, EngineListener
from worker_orcd.supervisor.liveness import Activity

SEQUENCES, CELLS = 4, 700


@dataclass(frozen=True, slots=True)
class Weather:
    """Probabilities of faults: per step of a death, a hang or a needless abort, and per start of a failure."""

    dies: float = 0.0
    hangs: float = 0.0
    aborts: float = 0.0
    fails_to_start: float = 0.0
    ignores_kill_sec: float = 0.0
    """The longest time that a killed engine takes to die."""


class VirtualEngine:
    """One life of an engine."""

    def __init__(
        self,
        listener: EngineListener,
        chance: random.Random,
        weather: Weather,
        pid: int,
        *,
        prefix_cache: bool = True,
        cells: int = CELLS,
    ) -> None:
        self.pid: int | None = pid
        self.dead = False
        self.hung = False
        self.hung_at = float("inf")
        self._listener = listener
        self._chance = chance
        self._weather = weather
        self._hand = HandLoop(parallel=SEQUENCES, cells=cells, prefix_cache=prefix_cache)
        self._hand.model.decode_ms = chance.choice([2.0, 8.0, 30.0])
        self._hand.model.prefill_row_ms = chance.choice([0.2, 2.0, 6.0])
        self._busy = False
        self._preparing: list[Submit] = []
        self._accepted: dict[int, tuple[Submit, tuple[int, ...]]] = {}
        self._dropped: set[int] = set()
        self._later(chance.uniform(0.05, 1.5), self._loaded)

    def _loaded(self) -> None:
        if self._chance.random() < self._weather.fails_to_start:
            self.die("it died while it was loading")
            return
        self._hand.warm_up()
        self._send(Ready("m", "cpu", True, 0, "F16", "bytes", 50_000, CELLS, CELLS, SEQUENCES, False, 1.0))
        self._kick()

    # Engine

    def prepare(self, message: Submit | Tokenize) -> None:
        """Prepare prompts one after the other, each in a short time."""
        assert isinstance(message, Submit), "no client here only tokenizes"
        if message.tokens is not None:
            self._accepted[message.run] = (message, message.tokens)
            return
        self._preparing.append(message)
        if len(self._preparing) == 1:
            self._later(self._chance.uniform(0.0005, 0.02), self._prepared)

    def drop(self, run: int) -> None:
        """A prompt that is being prepared is still answered, but not kept."""
        self._accepted.pop(run, None)
        self._dropped.add(run)

    def begin(self, message: Begin) -> None:
        """Post it for the next turn."""
        submitted, prompt = self._accepted.pop(message.run)
        self._hand.post(Run(submitted, prompt, message.max_tokens, message.generated))
        self._kick()

    def stop(self, run: int) -> None:
        """Post it, and end the running step."""
        self._hand.post(Stop(run))
        self._kick()

    def ping(self, runs: tuple[int, ...]) -> None:
        """Post it; it is answered between two steps."""
        self._hand.post(Ping(runs))
        self._kick()

    def activity(self) -> Activity | None:
        """It has no process: its silence is wall time."""
        return None

    def kill(self, why: str) -> None:
        """Die, perhaps after a delay."""
        self.hung = True
        sec = self._chance.uniform(0, self._weather.ignores_kill_sec) + 0.002
        asyncio.get_running_loop().call_later(sec, self.die, f"it was killed because {why}")

    async def close(self) -> None:
        """Die at once."""
        self.die("it was closed")

    def die(self, why: str = "it died of SIGKILL") -> None:
        """Die, once."""
        if not self.dead:
            self.dead = True
            self._hand.close()
            self._listener.lost(Death(why, self.pid))

    @property
    def cells_in_use(self) -> int:
        """By its model's own count."""
        return self._hand.model.cells_in_use()

    # Inside

    def _later(self, sec: float, what: object, *arguments: object) -> None:
        def act() -> None:
            if not self.dead and not self.hung:
                what(*arguments)  # type: ignore[operator]

        asyncio.get_running_loop().call_later(sec, act)

    def _send(self, message: FromEngine) -> None:
        self._listener.on_message(message)

    def _prepared(self) -> None:
        message = self._preparing.pop(0)
        prompt = tuple(message.prompt.encode())
        if message.run not in self._dropped:
            self._accepted[message.run] = (message, prompt)
        self._send(Accepted(message.run, prompt))
        if self._preparing:
            self._later(self._chance.uniform(0.0005, 0.02), self._prepared)

    def _kick(self) -> None:
        if not self._busy:
            self._busy = True
            self._later(0.0, self._turn)

    def _turn(self) -> None:
        if self._chance.random() < self._weather.aborts:
            self._hand.model.during_step = self._hand.byte.set
        said, began = len(self._hand.sent), self._hand.clock.now
        idle = self._hand.turn_idle()
        self._hand.model.during_step = lambda: None
        took = self._hand.clock.now - began
        for message in self._hand.sent[said:]:
            if isinstance(message, Stopped | Pong | AuditFault | Started):
                self._send(message)
        step = next((m for m in self._hand.sent[said:] if isinstance(m, Step)), None)
        if self.dead:
            return
        if self._chance.random() < self._weather.hangs:
            self.hung = True
            self.hung_at = asyncio.get_running_loop().time()
            return
        if self._chance.random() < self._weather.dies:
            self._later(took * self._chance.random(), self.die)
            return
        self._later(took + 0.0005, self._reported, step, idle)

    def _reported(self, step: Step | None, idle: bool) -> None:
        self._busy = False
        if step is not None:
            self._send(step)
        if not idle and not self.dead:
            self._kick()
