"""One engine is kept running: restarts, pauses, giving up, and the kill of an engine that does not stop. Real
asyncio on a loop whose clock jumps to the next timer, so seconds of patience take no time here."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from worker_orcd.protocol.messages import (
    Accepted,
    Begin,
    EndOfRun,
    FromEngine,
    LoadFailed,
    NarrationEvent,
    Pong,
    Ready,
    Rejected,
    Rendering,
    Step,
    Stopped,
    Submit,
    Tokenize,
)
from worker_orcd.sampling import SamplingParams
from worker_orcd.supervisor import supervisor as supervisor_module
from worker_orcd.supervisor.engine import Death, Engine, EngineListener
from worker_orcd.supervisor.liveness import (
    FIRST_STEP_PATIENCE,
    LOADING_PATIENCE,
    PREPARE_SEC,
    Activity,
    Waiting,
)
from worker_orcd.supervisor.supervisor import EngineState, Supervisor

READY = Ready("m", "cpu", True, 0, "F16", "bpe", 1000, 100, 100, 4, False, 1.0)
SUBMIT = Submit(1, "job-1", "cor", "x", "none", (), 32, SamplingParams(), 1, "0")
BEGIN = Begin(1, 1)


def stopped(run: int) -> Stopped:
    """The confirmation of a stop."""
    return Stopped(run, 0.0, 0.0, 1, 0, 1, 0, 0)


def step(next_ms: float = 10.0, *ended: int) -> Step:
    """A step in which these runs ended."""
    ends = tuple(EndOfRun(run, "stop", 1, 0) for run in ended)
    return Step(10.0, (), (), ends, 0, 0, next_ms)


class JumpingSelector(selectors.SelectSelector):
    """Does not wait: if nothing can be read, the loop's clock advances by the time that it would have waited."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read now."""
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen any more"
            self.now += max(0.0, timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock advances only by waiting."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        """Seconds of its clock."""
        return self.selector.now


class FakeEngine:
    """An engine that only notes its messages, and dies when the test or a kill says so."""

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
        """Note it."""
        self.reported.append(message)

    def drop(self, run: int) -> None:
        """Note it."""
        self.reported.append(f"drop {run}")

    def begin(self, message: Begin) -> None:
        """Note it."""
        self.reported.append(message)

    def stop(self, run: int) -> None:
        """Note it."""
        self.reported.append(run)

    def ping(self, runs: tuple[int, ...]) -> None:
        """Answer, unless this engine is one that does not."""
        self.pings += 1
        if self.answers_pings:
            asyncio.get_running_loop().call_soon(self.says, Pong())

    def activity(self) -> Activity | None:
        """The activity that the test has set."""
        return self.activity_is()

    def kill(self, why: str) -> None:
        """Die soon, unless this engine is one that cannot."""
        loop = asyncio.get_running_loop()
        self.killed_at.append(loop.time())
        if self.dies_when_killed:
            loop.call_soon(self.die, f"it was killed because {why}")

    async def close(self) -> None:
        """Die as asked."""
        self.closed = True
        self.die("it was closed")

    def die(self, why: str = "it died of SIGSEGV") -> None:
        """Report the death."""
        signal = why.removeprefix("it died of ")
        self.listener.lost(Death(why, self.pid, signal=signal if signal != why else None))

    def says(self, message: FromEngine) -> None:
        """Send a message to the front."""
        self.listener.on_message(message)


class Bench:
    """A supervisor on fakes, with its listener and its launcher."""

    def __init__(self, loop: JumpingLoop, deadline_sec: float) -> None:
        self._loop = loop
        self.supervisor = Supervisor(self.launch, self, deadline_sec)
        self.engines: list[FakeEngine] = []
        self.launched_at: list[float] = []
        self.said: list[object] = []
        self.dies_at_once: list[LoadFailed | Exception | None] = []
        """For the next launches in turn: a failed load, no process at all, or (None) a death without a word."""

    async def launch(self, listener: EngineListener) -> Engine:
        """Launch a fake engine."""
        self.launched_at.append(self.now)
        failure = self.dies_at_once.pop(0) if self.dies_at_once else False
        if isinstance(failure, Exception):
            raise failure
        engine = FakeEngine(listener, pid=100 + len(self.launched_at))
        self.engines.append(engine)
        if isinstance(failure, LoadFailed):
            self._loop.call_soon(engine.says, failure)
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
            assert self.now < deadline, "it does not happen"
            await asyncio.sleep(0.0625)

    async def ready(self) -> FakeEngine:
        """Launch an engine and make it ready."""
        launched = len(self.engines)
        if not launched:
            self.supervisor.start()
            await self.until(lambda: len(self.engines) > 0)
        self.engine.says(READY)
        return self.engine

    # SupervisorListener

    def on_message(self, message: FromEngine) -> None:
        """Note it."""
        self.said.append(message)

    def lost(self, death: Death) -> None:
        """Note it."""
        self.said.append(death)

    def on_permanent_failure(self, reason: str, code: str) -> None:
        """Note it."""
        self.said.append(("gone", reason, code))

    def held(self) -> tuple[int, ...]:
        """Nothing."""
        return ()

    def give_up(self, run: int) -> None:
        """Note it."""
        self.said.append(("give up", run, self.now))


Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Run a scenario on a jumping loop; returns the bench."""

    def played(scenario: Scenario, deadline_sec: float = 5.0) -> Bench:
        benches: list[Bench] = []

        async def scene() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, JumpingLoop)
            monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=loop.time))
            benches.append(Bench(loop, deadline_sec))
            await scenario(benches[0])

        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(scene())
        return benches[0]

    return played


# Starting.


def test_a_supervisor_is_ready_when_its_engine_says_so(play: Callable[..., Bench]) -> None:
    """Until then it is loading; the engine's messages are passed on."""

    seen: list[tuple[EngineState, bool, int | None]] = []

    async def scenario(bench: Bench) -> None:
        it = bench.supervisor
        seen.append((it.state, it.ever_ready, it.pid))
        await bench.ready()
        seen.append((it.state, it.ever_ready, it.pid))

    assert play(scenario).said == [READY]
    assert seen == [(EngineState.LOADING, False, None), (EngineState.READY, True, 101)]


def test_what_is_sent_reaches_the_engine_in_order(play: Callable[..., Bench]) -> None:
    """Submit, begin, stop."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        bench.supervisor.begin(BEGIN)
        bench.supervisor.stop(1)
        engine.says(stopped(1))
        assert engine.reported == [SUBMIT, BEGIN, 1]

    play(scenario)


def test_what_is_sent_while_there_is_no_engine_is_dropped(play: Callable[..., Bench]) -> None:
    """The worker sends it again once the next engine is ready."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.prepare(SUBMIT)
        bench.supervisor.begin(BEGIN)
        assert (await bench.ready()).reported == []

    play(scenario)


def has_started(bench: Bench, number: int) -> bool:
    """Whether so many engines were launched."""
    return len(bench.engines) == number


def test_engines_that_die_as_soon_as_they_are_ready_are_replaced_with_growing_pauses(
    play: Callable[..., Bench],
) -> None:
    """The supervisor neither gives up nor restarts in a tight loop; an engine that lived for a while is replaced at
    once again."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        for number in range(2, 10):
            engine.die()
            await bench.until(partial(has_started, bench, number))
            engine = bench.engine
            engine.says(READY)
        assert bench.supervisor.state is EngineState.READY
        await asyncio.sleep(3)
        engine.die()
        await bench.until(lambda: len(bench.engines) == 10)

    bench = play(scenario)
    assert bench.pauses[0] < 0.1
    assert bench.pauses[1:5] == [pytest.approx(0.1 * 2**n, abs=0.1) for n in range(4)]
    assert bench.pauses[7] == pytest.approx(5.0, abs=0.1)


def test_a_silent_engine_is_killed_without_any_stop_request(
    play: Callable[..., Bench],
) -> None:
    """After three seconds of silence; until its death is confirmed its state is stuck, so health is honest
    (G11)."""
    seen: list[EngineState] = []

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        await asyncio.sleep(30)
        assert engine.pings >= 25, "a quiet one is asked"
        engine.answers_pings = False
        engine.dies_when_killed = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 2 < engine.killed_at[0] - silent_from < 4.5
        seen.append(bench.supervisor.state)
        engine.die("it was killed because it has not answered for 3 s")
        await bench.until(lambda: len(bench.engines) == 2)

    bench = play(scenario)
    assert seen == [EngineState.STUCK]
    assert len(bench.engines) == 2


def test_an_engine_whose_steps_are_long_is_given_the_time_of_ten(play: Callable[..., Bench]) -> None:
    """It cannot answer in the middle of one."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.says(step(next_ms=700.0))
        engine.answers_pings = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 6.5 < engine.killed_at[0] - silent_from < 8.5

    play(scenario)


def test_an_engine_that_loads_is_given_a_minute(play: Callable[..., Bench]) -> None:
    """Disks are slow; a stopped process is detected all the same."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.answers_pings = False
        loads_from = bench.now
        await bench.until(lambda: bool(bench.engines[0].killed_at))
        assert 59 < bench.engines[0].killed_at[0] - loads_from < 62

    play(scenario)


def computing(bench: Bench, share: float) -> Callable[[], Activity]:
    """The activity of an engine whose busiest thread gets this share of a CPU."""
    return lambda: Activity(share * bench.now, 0, Waiting.CPU)


def test_a_starved_engine_is_not_killed_however_long_it_is_silent(play: Callable[..., Bench]) -> None:
    """It waits for a CPU (G16)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.says(step())
        engine.activity_is = computing(bench, 0.01)
        engine.answers_pings = False
        await asyncio.sleep(200)
        assert bench.supervisor.state is EngineState.READY
        assert not engine.killed_at

    play(scenario)


def test_an_engine_that_waits_for_a_prompt_to_be_rendered_is_not_killed(play: Callable[..., Bench]) -> None:
    """One tenant's prompt costs no other its engine: the prompt's process ends by itself (G16)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        engine.says(Rendering(1, slow=True))
        await asyncio.sleep(60)
        assert not engine.killed_at
        engine.says(Rendering(1, slow=False))
        await asyncio.sleep(PREPARE_SEC - 2)
        assert not engine.killed_at
        await bench.until(lambda: bool(engine.killed_at))

    play(scenario)


@pytest.mark.parametrize(
    "message",
    [Accepted(1, (5,)), Rejected(1, "no", "prompt"), Rendering(1, slow=True), NarrationEvent({}, "owner")],
)
def test_what_side_threads_say_does_not_hide_a_stuck_loop(
    play: Callable[..., Bench], message: FromEngine
) -> None:
    """A tenant that sends prompts without pause does not keep a stuck engine alive (G11)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.answers_pings = False
        silent_from = bench.now
        while not engine.killed_at:
            assert bench.now - silent_from < 30
            await asyncio.sleep(0.5)
            engine.says(message)

    play(scenario)


def test_a_prompt_whose_job_has_ended_is_dropped(play: Callable[..., Bench]) -> None:
    """So that the engine does not compute for it."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.drop(1)
        assert engine.reported == ["drop 1"]

    play(scenario)


def test_a_stop_ends_in_time_though_the_engine_is_only_starved(play: Callable[..., Bench]) -> None:
    """The client's five seconds take precedence: two of them are left for the engine's death (G5)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.activity_is = computing(bench, 0.01)
        engine.answers_pings = False
        bench.supervisor.stop(1)
        asked_at = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at[0] - asked_at == pytest.approx(3.0, abs=0.1)

    play(scenario)


def test_a_model_whose_first_step_is_long_is_not_killed_for_it(play: Callable[..., Bench]) -> None:
    """Before the first step nothing is known of step times, so the engine may compute for a minute. If it sleeps,
    it is stuck."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.activity_is = computing(bench, 1.0)
        engine.answers_pings = False
        silent_from = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at[0] - silent_from == pytest.approx(FIRST_STEP_PATIENCE.computing, abs=2)

    play(scenario)


def test_a_model_that_computes_without_end_while_it_loads_is_found_and_not_tried_again(
    play: Callable[..., Bench],
) -> None:
    """The next start would come to the same place."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.activity_is = computing(bench, 1.0)
        bench.engine.answers_pings = False
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.engines) == 1
    assert bench.engine.killed_at[0] - bench.launched_at[0] == pytest.approx(
        LOADING_PATIENCE.computing, abs=3
    )
    assert bench.supervisor.failure is not None
    assert "computed for 60 s" in bench.supervisor.failure.message


def test_an_engine_that_is_at_one_prompt_for_ever_is_killed(play: Callable[..., Bench]) -> None:
    """Its loop answers, but no job behind that prompt would ever run."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.prepare(SUBMIT)
        asked_at = bench.now
        await bench.until(lambda: bool(engine.killed_at))
        assert 9.5 < engine.killed_at[0] - asked_at < 12

    play(scenario)


def test_a_dead_engine_that_was_ready_is_replaced_at_once(play: Callable[..., Bench]) -> None:
    """Its death is reported, then the next one loads."""
    seen: list[tuple[EngineState, int | None]] = []

    async def scenario(bench: Bench) -> None:
        first = await bench.ready()
        first.die()
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        assert bench.supervisor.reason == "it died of SIGSEGV"
        await bench.until(lambda: len(bench.engines) == 2)
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        bench.engine.says(READY)
        seen.append((bench.supervisor.state, bench.supervisor.pid))
        assert bench.supervisor.restarts == 1

    bench = play(scenario)
    assert bench.said == [READY, Death("it died of SIGSEGV", 101, signal="SIGSEGV"), READY]
    assert bench.pauses[0] < 0.1
    assert seen == [(EngineState.LOST, None), (EngineState.LOADING, 102), (EngineState.READY, 102)]


def test_an_engine_that_keeps_dying_after_it_was_ready_is_restarted_again_and_again(
    play: Callable[..., Bench],
) -> None:
    """Each ready start resets the count: only failed starts in a row lead to giving up."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        for n in range(1, 12):
            bench.engine.die()
            await bench.until(lambda n=n: len(bench.engines) == n + 1)  # type: ignore[misc]  # Bound now, not later.
            bench.engine.says(READY)
        assert bench.supervisor.state is EngineState.READY
        assert bench.supervisor.restarts == 11

    play(scenario)


# Starts that fail.


def test_starts_that_fail_are_tried_five_times_with_growing_pauses(play: Callable[..., Bench]) -> None:
    """Then no engine is started any more; the last death is reported before that."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 9
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 5
    assert bench.pauses == sorted(bench.pauses)
    assert bench.pauses[0] >= 0.1
    assert all(later >= 2 * earlier - 0.01 for earlier, later in pairwise(bench.pauses))
    assert isinstance(bench.said[-2], Death)
    assert bench.said[-1] == (
        "gone",
        "the model: the engine cannot be started: it exited with code 1",
        "MODEL_LOAD_FAILED",
    )
    assert [type(said) for said in bench.said[:-1]] == [Death] * 5


def test_an_engine_that_worked_once_and_cannot_be_brought_back_is_lost(play: Callable[..., Bench]) -> None:
    """After as many tries, with another code than a model that cannot be loaded."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.dies_at_once = [None] * 9
        bench.engine.die()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.launched_at) == 1 + 5
    reason = "the model: the engine cannot be started: it exited with code 1"
    assert bench.said[-1] == ("gone", reason, "ENGINE_LOST")


@pytest.mark.parametrize("fault", [OSError("no more"), ValueError("no more"), RuntimeError("no more")])
def test_a_process_that_cannot_even_be_started_counts_as_a_failed_start(
    play: Callable[..., Bench], fault: Exception
) -> None:
    """No more processes, or a message that cannot be encoded: tried again, then given up with the reason."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [fault] * 5
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)

    bench = play(scenario)
    assert len(bench.launched_at) == 5
    assert bench.supervisor.reason is not None
    assert bench.supervisor.reason.endswith("its process cannot be started: no more")


def test_a_start_that_succeeds_after_failures_sets_the_count_back(play: Callable[..., Bench]) -> None:
    """After four failures, a ready engine and four more failures the supervisor has not given up."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 4
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 5)
        bench.engine.says(READY)
        bench.dies_at_once = [None] * 4
        bench.engine.die()
        await bench.until(lambda: len(bench.engines) == 10)
        assert bench.supervisor.state is EngineState.LOADING
        bench.engine.says(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_model_that_cannot_be_loaded_at_first_is_not_tried_again(play: Callable[..., Bench]) -> None:
    """The operator has to change something; the engine's own words and code are passed on."""
    failure = LoadFailed("INSUFFICIENT_VRAM", "m.gguf: 8 GB required, 4 available")

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [failure]
        bench.supervisor.start()
        await bench.until(lambda: bench.supervisor.state is EngineState.PERMANENTLY_FAILED)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 1
    assert bench.said == [
        failure,
        Death("it exited with code 1", 101),
        ("gone", failure.message, "INSUFFICIENT_VRAM"),
    ]
    assert bench.supervisor.reason == failure.message


@pytest.mark.parametrize("crash", ["SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV"])
def test_a_model_that_crashes_the_engine_while_it_loads_is_not_tried_again(
    play: Callable[..., Bench], crash: str
) -> None:
    """The file would crash the next engine as well; the message says how the engine died."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.die(f"it died of {crash}")
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.launched_at) == 1
    reason = f"the model: the engine died of {crash} while it loaded the model"
    if crash == "SIGILL":
        reason += ": its llama.cpp was built for another CPU; set it up or install it anew"
    assert bench.said[1:] == [("gone", reason, "MODEL_LOAD_FAILED")]


def test_an_engine_that_is_killed_while_it_loads_is_tried_again(play: Callable[..., Bench]) -> None:
    """A kill, for example by the kernel when memory is short, says nothing about the file."""

    async def scenario(bench: Bench) -> None:
        bench.supervisor.start()
        await bench.until(lambda: len(bench.engines) == 1)
        bench.engine.die("it died of SIGKILL")
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.says(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_an_engine_that_crashes_while_it_loads_a_known_model_is_tried_again(
    play: Callable[..., Bench],
) -> None:
    """The file was loaded once, so it is not the cause."""

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.engine.die("it died of SIGSEGV")
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.die("it died of SIGABRT")
        await bench.until(lambda: len(bench.engines) == 3)
        bench.engine.says(READY)

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_model_that_was_loaded_once_is_tried_again_when_a_load_fails(play: Callable[..., Bench]) -> None:
    """The dead engine may still have held the memory."""
    failure = LoadFailed("INSUFFICIENT_VRAM", "not yet free")

    async def scenario(bench: Bench) -> None:
        await bench.ready()
        bench.dies_at_once = [failure, failure]
        bench.engine.die()
        await bench.until(lambda: len(bench.engines) == 4)
        bench.engine.says(READY)

    assert play(scenario).supervisor.state is EngineState.READY


# Stops that are not confirmed.


def test_a_stop_that_is_confirmed_in_time_kills_no_engine(play: Callable[..., Bench]) -> None:
    """However much time passes afterwards."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        await asyncio.sleep(0.9)
        engine.says(stopped(1))
        await asyncio.sleep(60)
        assert engine.killed_at == []

    assert play(scenario).supervisor.state is EngineState.READY


def test_a_natural_end_confirms_a_stop_too(play: Callable[..., Bench]) -> None:
    """The run holds nothing any more, whatever ended it."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        engine.says(step(10.0, 1))
        await asyncio.sleep(60)
        assert engine.killed_at == []

    play(scenario)


def test_an_engine_that_does_not_confirm_is_killed_and_replaced(play: Callable[..., Bench]) -> None:
    """Once, after a second; until its death is confirmed its state is stuck."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: len(bench.engines) == 2)
        assert engine.killed_at == [pytest.approx(asked_at + 1.0, abs=0.01)]
        bench.engine.says(READY)
        await asyncio.sleep(60)

    bench = play(scenario)
    assert bench.said == [READY, Death("it was killed because it does not confirm a stop", 101), READY]
    assert bench.engines[1].killed_at == []


def test_an_engine_with_long_steps_is_given_ten_of_them(play: Callable[..., Bench]) -> None:
    """Of the length that it last predicted."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.says(step(200.0))
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at == [pytest.approx(asked_at + 2.0, abs=0.01)]

    play(scenario)


def test_an_engine_that_still_talks_but_does_not_confirm_is_killed_all_the_same(
    play: Callable[..., Bench],
) -> None:
    """Steps do not confirm a stop."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        for _ in range(11):
            await asyncio.sleep(0.1)
            engine.says(step(10.0))
        assert len(engine.killed_at) == 1

    play(scenario)


def test_a_stuck_engine_shows_as_stuck_until_it_is_dead(play: Callable[..., Bench]) -> None:
    """So health is honest (G11); and it is killed only once, however many stops are outstanding."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert bench.supervisor.state is EngineState.STUCK
        assert bench.supervisor.reason == "it does not confirm a stop"
        bench.supervisor.stop(2)
        await asyncio.sleep(3.5)
        assert bench.supervisor.state is EngineState.STUCK
        assert len(engine.killed_at) == 1
        engine.die()
        await bench.until(lambda: len(bench.engines) == 2)

    play(scenario)


def test_a_run_that_was_preempted_while_it_is_being_stopped_stays_in_the_escalation(
    play: Callable[..., Bench],
) -> None:
    """Its `Stopped` is still to come; an engine that hangs before it is killed, and the stop given up, in time (G5)."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        bench.supervisor.stop(1)
        engine.says(Step(10.0, (), (), (), 0, 0, 10.0, preempted=(1,)))
        await asyncio.sleep(10)
        assert engine.killed_at

    assert ("give up", 1) in [said[:2] for said in play(scenario).said if isinstance(said, tuple)]


def test_when_not_even_the_death_is_confirmed_the_stop_is_given_up_at_its_deadline(
    play: Callable[..., Bench],
) -> None:
    """Five seconds after its request, for each stop separately (G5)."""
    asked: dict[int, float] = {}

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.dies_when_killed = False
        asked[1] = bench.now
        bench.supervisor.stop(1)
        await asyncio.sleep(2.0)
        asked[2] = bench.now
        bench.supervisor.stop(2)
        bench.supervisor.stop(1)
        await asyncio.sleep(20)

    bench = play(scenario)
    assert bench.said[1:] == [
        ("give up", 1, pytest.approx(asked[1] + 5.0, abs=0.01)),
        ("give up", 2, pytest.approx(asked[2] + 5.0, abs=0.01)),
    ]


def test_the_kill_leaves_two_seconds_of_a_shorter_deadline(play: Callable[..., Bench]) -> None:
    """The shortest deadline that can be configured is three seconds."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        engine.says(step(5000.0))
        asked_at = bench.now
        bench.supervisor.stop(1)
        await bench.until(lambda: bool(engine.killed_at))
        assert engine.killed_at == [pytest.approx(asked_at + 1.0, abs=0.01)]

    play(scenario, 3.0)


def test_the_death_confirms_every_stop_and_the_next_engine_is_not_blamed(play: Callable[..., Bench]) -> None:
    """No stop of the dead engine is outstanding."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.stop(1)
        bench.supervisor.stop(2)
        engine.die()
        await bench.until(lambda: len(bench.engines) == 2)
        bench.engine.says(READY)
        await asyncio.sleep(60)
        assert bench.engine.killed_at == []

    assert not [said for said in play(scenario).said if isinstance(said, tuple)]


# The end.


def test_closing_ends_the_engine_and_starts_no_other(play: Callable[..., Bench]) -> None:
    """Its death is reported, and nothing else happens."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        await bench.supervisor.close()
        assert engine.closed
        await asyncio.sleep(60)

    bench = play(scenario)
    assert len(bench.engines) == 1
    assert bench.said == [READY, Death("it was closed", 101)]


@pytest.mark.parametrize("launches", [1, 2, 3, 4])
def test_closing_during_a_pause_between_starts_starts_no_other(
    play: Callable[..., Bench], launches: int
) -> None:
    """Whether the pause is shorter or longer than a shutdown waits."""

    async def scenario(bench: Bench) -> None:
        bench.dies_at_once = [None] * 9
        bench.supervisor.start()
        await bench.until(lambda: len(bench.launched_at) == launches)
        before = bench.now
        await bench.supervisor.close()
        assert bench.now - before <= 1.1
        await asyncio.sleep(60)

    assert len(play(scenario).launched_at) == launches


def test_killing_for_good_starts_no_other(play: Callable[..., Bench]) -> None:
    """As in a shutdown that has no time left."""

    async def scenario(bench: Bench) -> None:
        engine = await bench.ready()
        bench.supervisor.kill("the worker shuts down")
        await asyncio.sleep(60)
        assert len(engine.killed_at) == 1

    assert len(play(scenario).engines) == 1


def test_closing_before_anything_was_launched_is_harmless(play: Callable[..., Bench]) -> None:
    """A start-up that failed elsewhere."""

    async def scenario(bench: Bench) -> None:
        await bench.supervisor.close()

    assert play(scenario).engines == []
