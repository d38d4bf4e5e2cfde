"""Whether an engine makes progress, also when no client wants anything stopped (G11, G16). Pure.

The supervisor pings the engine each second. An engine that does not answer is stuck, or the machine is too busy to run
it. The two differ in what the engine's threads did meanwhile, so silence is measured in three ways:

- *computing*: the time that its busiest thread computed. A starved engine computes little, however long it is silent.
- *idle*: the time in which no thread computed and none was waiting for the machine: blocked, deadlocked or stopped.
- *disk*: the time in which a thread waited for a disk that delivered nothing.

The time in which its threads were only waiting for a CPU, or for a disk that delivers, counts for nothing.
"""

from dataclasses import dataclass
from enum import Enum

PING_INTERVAL_SEC = 1.0
PREPARE_SEC = 10.0
"""Preparing a prompt takes milliseconds; the engine may be at the same prompts for this long, without making progress.
Prompts that take long to render do not count: the engine waits for a process that ends by itself (`Rendering`)."""
STEPS_OF_PATIENCE = 10
"""An engine is given the time of ten predicted steps before it is judged stuck."""
_COMPUTING_SHARE = 0.02
"""Threads that computed for less than this share of an interval were not computing: answering pings takes less."""


class Waiting(Enum):
    """What the threads of an engine that does not compute are waiting for."""

    CPU = "cpu"
    """At least one thread can run and has no CPU."""
    DISK = "disk"
    """At least one thread waits for a disk (or for swapped memory)."""
    NOTHING = "nothing"
    """Every thread sleeps or is stopped."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What the engine has done until now.

    Attributes:
        computed_sec: how long its busiest thread has computed. Only differences mean anything.
        disk_reads: grows with each delivery from a disk.
        waiting: what its threads wait for at this moment, if they do not compute.
    """

    computed_sec: float
    disk_reads: int
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of an engine's time, by what it did. Also a limit, which is reached when one of the three is."""

    computing: float
    idle: float
    disk: float

    def at_least(self, sec: float) -> "Spent":
        """This limit, with each of the three raised to at least `sec`."""
        return Spent(max(self.computing, sec), max(self.idle, sec), max(self.disk, sec))


LOADING_PATIENCE = Spent(computing=60.0, idle=60.0, disk=300.0)
"""Between two signs of progress while the model is loaded and warmed up."""
FIRST_STEP_PATIENCE = Spent(computing=60.0, idle=3.0, disk=60.0)
"""Until the first step has run: nothing is known of how long the model's steps take."""
SILENCE_PATIENCE = Spent(computing=10.0, idle=3.0, disk=60.0)
"""Between two answers of a ready engine. The CPU time also holds what its threads burn at barriers while they wait for
a sibling that has no CPU."""


class OwnTime:
    """Measures what an engine did between two observations."""

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._activity: Activity | None = None

    def advance(self, now: float, activity: Activity | None) -> Spent:
        """What it did since the last look; `None` is an engine elsewhere, whose silence is wall time.

        Look each second. A look that comes much later shows that the front itself was away (its machine was suspended,
        or starves it too): then at most one second counts.
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
    """Adds up what an engine did since `since`."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._computing = self._idle = self._disk = 0.0

    @property
    def counted_sec(self) -> float:
        """Seconds of all three kinds together."""
        return self._computing + self._idle + self._disk

    def add(self, spent: Spent, now: float) -> None:
        """The engine did this until `now`. The watch may have been started in the middle of that time."""
        most = now - self.since
        self._computing += min(spent.computing, most)
        # Sleep and a dead disk count without a break only: a starved engine may be seen asleep now and then.
        self._idle = self._idle + min(spent.idle, most) if spent.idle else 0.0
        self._disk = self._disk + min(spent.disk, most) if spent.disk else 0.0

    def exceeded(self, limit: Spent) -> "Stuck | None":
        """Which limit is reached, if one is."""
        if self._idle >= limit.idle:
            return Stuck(f"it has not answered for {self._idle:.0f} s")
        if self._computing >= limit.computing:
            return Stuck(f"it has computed for {self._computing:.0f} s without an answer", computing=True)
        if self._disk >= limit.disk:
            return Stuck(f"it has waited {self._disk:.0f} s for a disk")
        return None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Why an engine is judged stuck. `computing`: it computes without end, as its successor would at the same place."""

    why: str
    computing: bool = False


class Liveness:
    """Keeps how long one engine's loop has been silent, and how long its side threads have been at one prompt."""

    def __init__(self, now: float) -> None:
        self._silence = Stopwatch(now)
        self._preparing: set[int] = set()
        """Runs whose prompts the engine prepares, without those that take long to render."""
        self._at_prompt = Stopwatch(now)

    def on_message(self, now: float) -> None:
        """The engine's loop sent a message, or the model is loaded further."""
        self._silence = Stopwatch(now)

    def prepare(self, run: int, now: float) -> None:
        """The engine was given a prompt to tokenize."""
        if not self._preparing:
            self._at_prompt = Stopwatch(now)
        self._preparing.add(run)

    def rendering(self, run: int, now: float, *, slow: bool) -> None:
        """The rendering of a prompt turns out to be slow, or has ended."""
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
        """What the engine did since the last call."""
        self._silence.add(spent, now)
        self._at_prompt.add(spent, now)

    def stuck(self, patience: Spent) -> Stuck | None:
        """Whether the engine is stuck, and why."""
        silent = self._silence.exceeded(patience)
        if silent is not None:
            return silent
        if self._preparing and self._at_prompt.counted_sec >= PREPARE_SEC:
            return Stuck(f"it has been at one prompt for {PREPARE_SEC:.0f} s")
        return None
