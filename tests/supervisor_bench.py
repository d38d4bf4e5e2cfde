"""A supervisor with fake engines, on an event loop whose clock jumps to the next timer, so waiting takes no time."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

from tests.simulation.clock import JumpingSelector
from worker_orcd.protocol.messages import (
    Begin,
    EndOfRun,
    FromEngine,
    LoadFailed,
    Pong,
    Ready,
    Step,
    Stopped,
    Submit,
    Tokenize,
)
from worker_orcd.sampling import SamplingParams
from worker_orcd.supervisor.engine import Death, Engine, EngineListener
from worker_orcd.supervisor.liveness import (
    Activity,
    Waiting,
)
from worker_orcd.supervisor.supervisor import Supervisor

SUBMIT = Submit(1, "job-1", "cor", "x", "none", (), 32, SamplingParams(), 1, "0")
READY = Ready("m", "cpu", True, 0, "F16", "bpe", 1000, 100, 100, 4, False, 1.0)


def stopped(run: int) -> Stopped:
    """The confirmation of a stop."""
    return Stopped(run, 0.0, 0.0, 1, 0, 1, 0, 0)


def step(next_ms: float = 10.0, *ended: int) -> Step:
    """A step in which these runs ended."""
    ends = tuple(EndOfRun(run, "stop", 1, 0) for run in ended)
    return Step(10.0, (), (), ends, 0, 0, next_ms)


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock advances only by waiting."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        """Seconds of its clock."""
        return self.selector.now


class FakeEngine:
    """An engine that records its messages, and dies when the test or a kill makes it."""

    def __init__(self, listener: EngineListener, pid: int) -> None:
        self.pid: int | None = pid
        self.reported: list[object] = []
        self.listener = listener
        self.dies_when_killed = True
        self.answers_pings = True
        self.pings = 0
        self.activity_is: Callable[[], Activity | None] = lambda: None
        self.killed_at: list[float] = []
        self.closed = False

    def prepare(self, message: Submit | Tokenize) -> None:
        """Record it."""
        self.reported.append(message)

    def drop(self, run: int) -> None:
        """Record it."""
        self.reported.append(f"drop {run}")

    def begin(self, message: Begin) -> None:
        """Record it."""
        self.reported.append(message)

    def stop(self, run: int) -> None:
        """Record it."""
        self.reported.append(run)

    def ping(self, runs: tuple[int, ...]) -> None:
        """Answer, unless the test has turned answers off."""
        self.pings += 1
        if self.answers_pings:
            asyncio.get_running_loop().call_soon(self.sends, Pong())

    def activity(self) -> Activity | None:
        """The activity that the test has set."""
        return self.activity_is()

    def kill(self, why: str) -> None:
        """Die soon, unless the test has turned that off."""
        loop = asyncio.get_running_loop()
        self.killed_at.append(loop.time())
        if self.dies_when_killed:
            loop.call_soon(self.die, f"it was killed because {why}")

    async def close(self) -> None:
        """Die."""
        self.closed = True
        self.die("it was closed")

    def die(self, why: str = "it died of SIGSEGV") -> None:
        """Report the death."""
        signal = why.removeprefix("it died of ")
        self.listener.lost(Death(why, self.pid, signal=signal if signal != why else None))

    def sends(self, message: FromEngine) -> None:
        """Send a message to the front."""
        self.listener.on_message(message)


class Bench:
    """A supervisor on fakes, with its listener and its launcher."""

    def __init__(self, loop: JumpingLoop, deadline_sec: float) -> None:
        self._loop = loop
        self.supervisor = Supervisor(self.launch, self, deadline_sec)
        self.engines: list[FakeEngine] = []
        self.launched_at: list[float] = []
        self.received: list[object] = []
        self.dies_at_once: list[LoadFailed | Exception | None] = []
        """For each of the next launches: a failed load, no process at all, or (None) a death without a message."""

    async def launch(self, listener: EngineListener) -> Engine:
        """Launch a fake engine."""
        self.launched_at.append(self.now)
        failure = self.dies_at_once.pop(0) if self.dies_at_once else False
        if isinstance(failure, Exception):
            raise failure
        engine = FakeEngine(listener, pid=100 + len(self.launched_at))
        self.engines.append(engine)
        if isinstance(failure, LoadFailed):
            self._loop.call_soon(engine.sends, failure)
        if failure is not False:
            self._loop.call_soon(engine.die, "it exited with code 1")
        return engine

    @property
    def now(self) -> float:
        """The loop's time."""
        return self._loop.time()

    @property
    def engine(self) -> FakeEngine:
        """The latest engine."""
        return self.engines[-1]

    @property
    def pauses(self) -> list[float]:
        """Seconds between launches."""
        return [round(later - earlier, 3) for earlier, later in pairwise(self.launched_at)]

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the loop run until a condition holds; the clock advances when nothing else happens."""
        deadline = self.now + 100.0
        while not true():
            assert self.now < deadline, "the condition never holds"
            await asyncio.sleep(0.0625)

    async def ready(self) -> FakeEngine:
        """Launch an engine and make it ready."""
        launched = len(self.engines)
        if not launched:
            self.supervisor.start()
            await self.until(lambda: len(self.engines) > 0)
        self.engine.sends(READY)
        return self.engine

    # SupervisorListener

    def on_message(self, message: FromEngine) -> None:
        """Record it."""
        self.received.append(message)

    def lost(self, death: Death) -> None:
        """Record it."""
        self.received.append(death)

    def on_permanent_failure(self, reason: str, code: str) -> None:
        """Record it."""
        self.received.append(("permanently failed", reason, code))

    def held(self) -> tuple[int, ...]:
        """Nothing."""
        return ()

    def give_up(self, run: int) -> None:
        """Record it."""
        self.received.append(("give up", run, self.now))


Scenario = Callable[[Bench], Awaitable[None]]


def computing(bench: Bench, share: float) -> Callable[[], Activity]:
    """The activity of an engine whose busiest thread gets this share of a CPU."""
    return lambda: Activity(share * bench.now, 0, Waiting.CPU)
