"""The escalation of a stop: requested → interrupted → judged stuck → killed → given up (G5: five seconds). Pure.

An engine that does not confirm a stop within the patience is stuck. Patience is measured in the engine's own time
(`liveness`), so a starved engine gets longer. But the client waits in wall time: at least two seconds before the
deadline, the engine is killed whatever the reason, so that its death can be confirmed in time.
"""

from dataclasses import dataclass

from worker_orcd.supervisor.liveness import STEPS_OF_PATIENCE, Spent, Stopwatch

MIN_PATIENCE_SEC = 1.0
KILL_BEFORE_DEADLINE_SEC = 2.0
_LOOK_INTERVAL_SEC = 0.05
"""Minimum interval of checks, because a starved engine's own time may hardly advance."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now, and when to check again (seconds of the monotonic clock; None: no stop is outstanding)."""

    stuck: bool
    given_up: tuple[int, ...]
    look_again_at: float | None


class StopEscalation:
    """Tracks the stops that an engine has not confirmed yet."""

    def __init__(self, deadline_sec: float) -> None:
        self._deadline_sec = deadline_sec
        self._asked: dict[int, Stopwatch] = {}
        self._step_sec = 0.0

    @property
    def patience_sec(self) -> float:
        """How long a stop may be unconfirmed, in the engine's own time, before the engine is judged stuck."""
        wanted = max(MIN_PATIENCE_SEC, STEPS_OF_PATIENCE * self._step_sec)
        return min(wanted, self._kill_sec)

    @property
    def _kill_sec(self) -> float:
        return self._deadline_sec - KILL_BEFORE_DEADLINE_SEC

    def predict(self, step_ms: float) -> None:
        """Set the predicted duration of the engine's steps."""
        self._step_sec = step_ms / 1000

    def asked(self, run: int, now: float) -> None:
        """A stop was sent to the engine. A second one for the same run has no effect."""
        self._asked.setdefault(run, Stopwatch(now))

    def confirmed(self, run: int) -> None:
        """A run's stop was confirmed."""
        self._asked.pop(run, None)

    def engine_lost(self) -> None:
        """The engine's death confirms every stop."""
        self._asked.clear()
        self._step_sec = 0.0

    def advance(self, spent: Spent, now: float) -> None:
        """Add the engine's activity since the last call."""
        for watch in self._asked.values():
            watch.add(spent, now)

    def verdict(self, now: float) -> Verdict:
        """Judge the engine by its oldest unconfirmed stop."""
        if not self._asked:
            return Verdict(stuck=False, given_up=(), look_again_at=None)
        oldest = min(self._asked.values(), key=lambda watch: watch.since)
        patience_left = self.patience_sec - oldest.counted_sec
        kill_at = oldest.since + self._kill_sec
        stuck = patience_left <= 0 or now >= kill_at
        given_up = tuple(r for r, watch in self._asked.items() if now - watch.since >= self._deadline_sec)
        for run in given_up:
            del self._asked[run]
        if not self._asked:
            return Verdict(stuck, given_up, look_again_at=None)
        oldest_since = min(watch.since for watch in self._asked.values())
        look_again_at = (
            oldest_since + self._deadline_sec
            if stuck
            else min(now + max(patience_left, _LOOK_INTERVAL_SEC), kill_at)
        )
        return Verdict(stuck, given_up, look_again_at)
