"""Judges whether an engine makes progress, also when there are no stop requests (G11, G16). Pure.

The supervisor pings the engine each second. If the engine does not answer, it is stuck, or the machine is too busy to
run it. The two differ in the activity of the engine's threads, so the time without an answer is measured in three
parts:

- *computing*: the time that its busiest thread computed. A starved engine computes little, even in a long time.
- *idle*: the time in which no thread computed and none was waiting for the machine: blocked, deadlocked or stopped.
- *disk*: the time in which a thread waited for a disk that delivered no data.

Time in which its threads only waited for a CPU, or for a disk that delivered data, does not count.
"""

from dataclasses import dataclass
from enum import Enum

PING_INTERVAL_SEC = 1.0
PREPARE_SEC = 10.0
"""How long the engine may prepare the same prompts without progress; one normally takes milliseconds. Prompts that
render slowly do not count, because the engine then waits for a process with limits of its own (`Rendering`)."""
STEPS_OF_PATIENCE = 10
"""An engine is not judged stuck before the time of ten predicted steps has passed."""
_COMPUTING_SHARE = 0.02
"""Threads that used less than this share of an interval count as not computing: answering pings takes less."""


class Waiting(Enum):
    """What the threads of an engine wait for while they do not compute."""

    CPU = "cpu"
    """At least one thread is runnable but has no CPU."""
    DISK = "disk"
    """At least one thread waits for a disk (or for swapped memory)."""
    NOTHING = "nothing"
    """Every thread sleeps or is stopped."""


@dataclass(frozen=True, slots=True)
class Activity:
    """The activity of the engine's process so far.

    Attributes:
        computed_sec: how long its busiest thread has computed. Only differences are meaningful.
        disk_reads: increases with each delivery from a disk.
        waiting: what the threads wait for at this moment, if they do not compute.
    """

    computed_sec: float
    disk_reads: int
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of an engine's time, by activity. Also used as a limit, which is reached when one of the three is."""

    computing: float
    idle: float
    disk: float

    def at_least(self, sec: float) -> "Spent":
        """This limit, with each of the three raised to at least `sec`."""
        return Spent(max(self.computing, sec), max(self.idle, sec), max(self.disk, sec))


LOADING_PATIENCE = Spent(computing=60.0, idle=60.0, disk=300.0)
"""Limit between two signs of progress while the model is loaded and warmed up."""
FIRST_STEP_PATIENCE = Spent(computing=60.0, idle=3.0, disk=60.0)
"""Limit before the first step, because nothing is known about the duration of steps."""
SILENCE_PATIENCE = Spent(computing=10.0, idle=3.0, disk=60.0)
"""Limit between two answers of a ready engine. Its CPU time includes busy waiting of threads at barriers for a thread
that has no CPU."""


class OwnTime:
    """Measures an engine's activity between two observations."""

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._activity: Activity | None = None

    def advance(self, now: float, activity: Activity | None) -> Spent:
        """The engine's activity since the last observation. With `activity` None (a remote engine), wall time counts.

        Call it each second. A much later call shows that the front itself did not run (the machine was suspended, or
        starves the front, too); then at most one second counts.
        """
        wall = now - self._looked_at
        wall = PING_INTERVAL_SEC if wall > 2 * PING_INTERVAL_SEC else max(0.0, wall)
        before, self._activity = self._activity, activity
        self._looked_at = now
        if before is None or activity is None:
            return Spent(0.0, wall, 0.0)
        computed = activity.computed_sec - before.computed_sec
        if computed >= _COMPUTING_SHARE * wall:
            return Spent(min(computed, wall), 0.0, 0.0)
        if activity.disk_reads != before.disk_reads or activity.waiting is Waiting.CPU:
            return Spent(0.0, 0.0, 0.0)
        if activity.waiting is Waiting.DISK:
            return Spent(0.0, 0.0, wall)
        return Spent(0.0, wall, 0.0)


class Stopwatch:
    """Adds up an engine's activity since `since`."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._computing = self._idle = self._disk = 0.0

    @property
    def counted_sec(self) -> float:
        """Seconds of all three kinds together."""
        return self._computing + self._idle + self._disk

    def add(self, spent: Spent, now: float) -> None:
        """Add activity until `now`. Only the part after `since` counts."""
        most = now - self.since
        self._computing += min(spent.computing, most)
        # Idle and disk time only count without interruption: a starved engine may be seen sleeping now and then.
        self._idle = self._idle + min(spent.idle, most) if spent.idle else 0.0
        self._disk = self._disk + min(spent.disk, most) if spent.disk else 0.0

    def exceeded(self, limit: Spent) -> "Stuck | None":
        """The limit that is reached, if any."""
        if self._idle >= limit.idle:
            return Stuck(f"it has not answered for {self._idle:.0f} s")
        if self._computing >= limit.computing:
            return Stuck(f"it has computed for {self._computing:.0f} s without answering", computing=True)
        if self._disk >= limit.disk:
            return Stuck(f"it has waited {self._disk:.0f} s for a disk")
        return None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Why an engine is judged stuck. `computing`: it computes endlessly, and its successor would do the same."""

    why: str
    computing: bool = False


class Liveness:
    """Measures how long an engine's loop has not answered, and how long its tokenizer threads have worked on one
    prompt."""

    def __init__(self, now: float) -> None:
        self._silence = Stopwatch(now)
        self._preparing: set[int] = set()
        """Runs whose prompts the engine prepares, without slowly rendering ones."""
        self._at_prompt = Stopwatch(now)

    def on_message(self, now: float) -> None:
        """The engine's loop sent a message, or loading made progress."""
        self._silence = Stopwatch(now)

    def prepare(self, run: int, now: float) -> None:
        """A prompt was sent to the engine."""
        if not self._preparing:
            self._at_prompt = Stopwatch(now)
        self._preparing.add(run)

    def rendering(self, run: int, now: float, *, slow: bool) -> None:
        """A prompt turned out to render slowly, or its rendering has ended."""
        if slow:
            self._preparing.discard(run)
        else:
            self._preparing.add(run)
        self._at_prompt = Stopwatch(now)

    def prepared(self, run: int, now: float) -> None:
        """The engine has tokenized a prompt."""
        self._preparing.discard(run)
        self._at_prompt = Stopwatch(now)

    def advance(self, spent: Spent, now: float) -> None:
        """Add the engine's activity since the last call."""
        self._silence.add(spent, now)
        self._at_prompt.add(spent, now)

    def stuck(self, patience: Spent) -> Stuck | None:
        """Whether the engine is stuck, and why."""
        silent = self._silence.exceeded(patience)
        if silent is not None:
            return silent
        if self._preparing and self._at_prompt.counted_sec >= PREPARE_SEC:
            return Stuck(f"it has prepared one prompt for {PREPARE_SEC:.0f} s")
        return None
