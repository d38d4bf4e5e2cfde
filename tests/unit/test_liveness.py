"""When an engine is judged stuck, and when it is only starved (G11, G16). Pure: time and activity are arguments."""

import itertools
import random
from collections.abc import Iterable, Iterator
from math import inf

import pytest

from worker_orcd.supervisor.liveness import (
    LOADING_PATIENCE,
    PREPARE_SEC,
    SILENCE_PATIENCE,
    Activity,
    Liveness,
    OwnTime,
    Spent,
    Stuck,
    Waiting,
)

HOUR = 3600


class Watch:
    """An engine watched as the supervisor watches it: a look each second."""

    def __init__(self, patience: Spent = SILENCE_PATIENCE) -> None:
        self.now = 0.0
        self.liveness = Liveness(0.0)
        self._own_time = OwnTime(0.0)
        self._patience = patience

    def look(self, activity: Activity | None, after_sec: float = 1.0) -> Stuck | None:
        """The activity that is seen a second later."""
        self.now += after_sec
        self.liveness.advance(self._own_time.advance(self.now, activity), self.now)
        return self.liveness.stuck(self._patience)

    def stuck_after(self, activities: Iterable[Activity | None]) -> int | None:
        """How many looks it takes until the engine is judged stuck; None if it never is."""
        for looks, activity in enumerate(activities, start=1):
            if self.look(activity) is not None:
                return looks
        return None


def computing(share: float, waiting: Waiting = Waiting.CPU, sec: int = HOUR) -> Iterator[Activity]:
    """Activities of an engine whose busiest thread gets this share of a CPU."""
    return (Activity(share * second, 0, waiting) for second in range(sec))


def asleep(sec: int = HOUR) -> Iterator[Activity]:
    """Activities of an engine that is stopped, deadlocked, or in a call that never returns."""
    return computing(0.0, Waiting.NOTHING, sec)


def test_an_engine_that_sends_messages_is_not_stuck() -> None:
    """Whatever its threads do."""
    watch = Watch()
    for activity in itertools.chain(asleep(60), computing(1.0, sec=60)):
        watch.liveness.on_message(watch.now)
        assert watch.look(activity) is None


def test_a_silent_one_that_sleeps_is_stuck_after_three_seconds() -> None:
    """SIGSTOP and a deadlock look like this. The first look has nothing to compare with."""
    watch = Watch()
    assert watch.stuck_after(asleep()) == 3
    assert watch.liveness.stuck(SILENCE_PATIENCE) == Stuck("it has not answered for 3 s")


def test_one_whose_activity_cannot_be_seen_is_judged_by_wall_time() -> None:
    """The engine runs on another machine."""
    assert Watch().stuck_after([None] * 60) == 3


def test_a_silent_one_that_computes_is_stuck_after_its_time() -> None:
    """An endless native call, or an endless loop."""
    watch = Watch()
    looks = watch.stuck_after(computing(1.0))
    assert looks == pytest.approx(SILENCE_PATIENCE.computing, abs=1)
    found = watch.liveness.stuck(SILENCE_PATIENCE)
    assert found is not None
    assert found.computing


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.05])
def test_a_looping_one_is_found_also_while_it_is_starved(share: float) -> None:
    """Later, in proportion to its starvation."""
    assert Watch().stuck_after(computing(share)) == pytest.approx(
        SILENCE_PATIENCE.computing / share, rel=0.1, abs=2
    )


def test_one_that_waits_for_a_cpu_is_not_stuck() -> None:
    """Not even after an hour without any CPU time."""
    assert Watch().stuck_after(computing(0.0)) is None


def test_one_whose_disk_delivers_is_not_stuck() -> None:
    """It sleeps and computes nothing because it is swapped out, or reads a model from a slow disk."""
    for waiting in (Waiting.DISK, Waiting.NOTHING):
        assert Watch().stuck_after(Activity(0.0, reads, waiting) for reads in range(HOUR)) is None


def test_one_whose_disk_has_gone_is_stuck_after_a_minute() -> None:
    """For example on a network file system that does not come back."""
    looks = Watch().stuck_after(computing(0.0, Waiting.DISK))
    assert looks == pytest.approx(SILENCE_PATIENCE.disk, abs=1)


def test_answering_pings_is_no_computing() -> None:
    """The loop is deadlocked, and other threads wake up each second."""
    looks = Watch().stuck_after(computing(0.004, Waiting.NOTHING))
    assert looks == pytest.approx(SILENCE_PATIENCE.idle, abs=1)


def test_the_machine_that_killed_a_healthy_engine_25_times_in_46_minutes_kills_none() -> None:
    """Traces like the recorded ones: 46 minutes at a quarter of a CPU or less, with steps of up to eight seconds
    between two answers."""
    killed_by_wall_time = 0
    for seed in range(25):
        chance = random.Random(seed)
        watch, cpu, silent = Watch(), 0.0, 0
        answers_at = 0.0
        for _ in range(46 * 60):
            cpu += chance.uniform(0.0, 0.25)
            if watch.now >= answers_at:
                watch.liveness.on_message(watch.now)
                answers_at = watch.now + chance.uniform(0.2, 8.0)
                silent = 0
            silent += 1
            killed_by_wall_time += silent == 4
            waiting = chance.choice([Waiting.CPU, Waiting.CPU, Waiting.DISK])
            assert watch.look(Activity(cpu, 0, waiting)) is None
    assert killed_by_wall_time > 25 * 100


def test_a_message_between_two_looks_counts_from_then() -> None:
    """What the engine did before its message does not count as silence."""
    watch = Watch()
    watch.look(Activity(0.0, 0, Waiting.NOTHING))
    watch.liveness.on_message(watch.now + 0.9)
    assert [watch.look(Activity(0.0, 0, Waiting.NOTHING)) for _ in range(3)] == [None] * 3
    assert watch.look(Activity(0.0, 0, Waiting.NOTHING)) is not None


@pytest.mark.parametrize("away_sec", [2.5, 10.0, float(HOUR)])
def test_a_front_that_was_away_itself_does_not_blame_the_engine(away_sec: float) -> None:
    """After a suspended hour the engine has its whole patience again, less a second."""
    watch = Watch()
    assert watch.look(None, after_sec=away_sec) is None
    assert watch.look(None) is None
    assert watch.look(None) == Stuck("it has not answered for 3 s")


def test_loading_gets_a_minute_between_two_signs_of_progress() -> None:
    """Computing or asleep, but not without end: one engine computed for eight minutes."""
    for activities in (computing(1.0), asleep()):
        assert Watch(LOADING_PATIENCE).stuck_after(activities) == pytest.approx(60, abs=1)


def test_loading_from_a_slow_disk_on_a_starved_machine_is_no_fault() -> None:
    """Neither time in which the disk delivers nor time without a CPU counts."""
    chance = random.Random(1)
    activities, cpu, reads = [], 0.0, 0
    for _ in range(HOUR):
        cpu += 0.01
        reads += chance.random() < 0.7
        activities.append(Activity(cpu, reads, chance.choice([Waiting.CPU, Waiting.DISK])))
    assert Watch(LOADING_PATIENCE).stuck_after(activities) is None


def test_tokenizing_is_watched_by_the_head_of_the_line() -> None:
    """A long line of prompts that makes progress is not stuck."""
    watch = Watch()
    for run in range(100):
        watch.liveness.prepare(run, 0.0)
    for run in range(60):
        watch.liveness.on_message(watch.now)
        watch.liveness.prepared(run, watch.now)
        assert watch.look(None) is None
    looks = 0
    while (stuck := watch.look(None)) is None:
        watch.liveness.on_message(watch.now)
        looks += 1
    assert stuck.why == f"it has prepared one prompt for {PREPARE_SEC:.0f} s"
    assert looks == pytest.approx(PREPARE_SEC, abs=2)


def test_a_prompt_is_given_its_time_from_when_it_was_handed_over() -> None:
    """Not from the end of the prompt before it, a hundred seconds earlier."""
    watch = Watch(Spent(1000.0, 1000.0, 1000.0))
    watch.liveness.prepared(1, 0.0)
    assert watch.stuck_after([None] * 100) is None
    watch.liveness.prepare(2, watch.now)
    assert watch.stuck_after([None] * 9) is None
    assert watch.look(None) is not None


def test_a_prompt_waits_for_a_cpu_as_long_as_it_takes() -> None:
    """Time without a CPU does not count for tokenizing either."""
    watch = Watch(Spent(inf, inf, inf))
    watch.liveness.prepare(1, 0.0)
    assert watch.stuck_after(computing(0.0)) is None


def test_a_prompt_that_takes_long_to_render_is_no_sign_of_a_stuck_engine() -> None:
    """The engine waits for a process that ends by itself. It is watched again when it has an answer."""
    for activities in (asleep(), computing(1.0)):
        watch = Watch(Spent(inf, inf, inf))
        watch.liveness.prepare(1, 0.0)
        watch.liveness.rendering(1, 0.0, slow=True)
        assert watch.stuck_after(activities) is None
        watch.liveness.rendering(1, watch.now, slow=False)
        assert watch.stuck_after([None] * 9) is None
        assert watch.look(None) is not None


def test_a_prompt_beside_one_that_takes_long_to_render_is_watched() -> None:
    """A slow prompt hides no other at which the engine is stuck."""
    watch = Watch(Spent(inf, inf, inf))
    for run in (1, 2):
        watch.liveness.prepare(run, 0.0)
    watch.liveness.rendering(1, 0.0, slow=True)
    assert watch.stuck_after([None] * 60) == pytest.approx(PREPARE_SEC, abs=1)
