"""The ladder of a stop: asked → interrupted → judged stuck → killed → given up. Pure; the worker's five seconds (G5).

Each rung has its time, counted from when the engine was asked. An engine that has not confirmed within its patience
is stuck; it is killed at least two seconds before the deadline, so that its death can be confirmed in time.
"""

from dataclasses import dataclass

LEAST_PATIENCE_SEC = 1.0
STEPS_OF_PATIENCE = 10
"""An engine is given the time of ten predicted steps before it is judged stuck."""
KILL_BEFORE_DEADLINE_SEC = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now, and when to look again (seconds of the monotonic clock; None: nothing is outstanding)."""

    stuck: bool
    given_up: tuple[int, ...]
    look_again_at: float | None


class StopLadder:
    """Keeps the stops that an engine has not confirmed yet."""

    def __init__(self, deadline_sec: float) -> None:
        self._deadline_sec = deadline_sec
        self._asked: dict[int, float] = {}
        self._step_sec = 0.0

    @property
    def patience_sec(self) -> float:
        """How long a stop may go unconfirmed before the engine is judged stuck."""
        wanted = max(LEAST_PATIENCE_SEC, STEPS_OF_PATIENCE * self._step_sec)
        return min(wanted, self._deadline_sec - KILL_BEFORE_DEADLINE_SEC)

    def predict(self, step_ms: float) -> None:
        """The engine predicts that its steps take so long."""
        self._step_sec = step_ms / 1000

    def asked(self, run: int, now: float) -> None:
        """The engine is asked to stop this run. Asking again changes nothing."""
        self._asked.setdefault(run, now)

    def confirmed(self, run: int) -> None:
        """Nothing is computed or held for this run any more."""
        self._asked.pop(run, None)

    def engine_lost(self) -> None:
        """Its death confirms everything."""
        self._asked.clear()
        self._step_sec = 0.0

    def verdict(self, now: float) -> Verdict:
        """Judge."""
        if not self._asked:
            return Verdict(stuck=False, given_up=(), look_again_at=None)
        stuck = now - min(self._asked.values()) >= self.patience_sec
        given_up = tuple(run for run, asked in self._asked.items() if now - asked >= self._deadline_sec)
        for run in given_up:
            del self._asked[run]
        if not self._asked:
            return Verdict(stuck, given_up, look_again_at=None)
        rung = self._deadline_sec if stuck else self.patience_sec
        return Verdict(stuck, given_up, look_again_at=min(self._asked.values()) + rung)
