"""Whether an engine gets on, also when nobody wants anything stopped (G11). Pure.

An engine is asked each second, and one that does not answer is stuck: stopped, deadlocked, or in a native call that
does not end. Counting prompts happens on a thread of its own there, so that is watched for itself.
"""

PING_EACH_SEC = 1.0
"""How often an engine is asked."""
SILENCE_SEC = 3.0
"""One that has not answered for so long is stuck, if its steps are not predicted to be longer than a tenth of that."""
LOADING_SILENCE_SEC = 60.0
"""The same before it is ready: it starts, and loads a model from a slow disk."""
PREPARE_SEC = 10.0
"""A prompt is rendered and tokenized in milliseconds; at the head of the line it may take so long."""


class Pulse:
    """Keeps when one engine was last heard, and the prompts it has been given to count."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._looked_at = now
        self._prepared_at = now
        self._preparing: dict[int, float] = {}

    def heard(self, now: float) -> None:
        """It said something."""
        self._heard_at = now

    def prepare(self, run: int, now: float) -> None:
        """It was given a prompt to count."""
        self._preparing[run] = now

    def prepared(self, run: int, now: float) -> None:
        """It has counted one."""
        self._preparing.pop(run, None)
        self._prepared_at = now

    def stuck(self, now: float, *, patience_sec: float) -> str | None:
        """Why it must be taken for stuck, if so. Look regularly: a look that comes late tells that the front itself was
        away (a suspended machine), and that is not held against the engine."""
        away = now - self._looked_at > 2 * PING_EACH_SEC
        self._looked_at = now
        if away:
            self._heard_at = max(self._heard_at, now - PING_EACH_SEC)
            self._prepared_at = now
        if now - self._heard_at >= patience_sec:
            return f"it has not answered for {now - self._heard_at:.0f} s"
        if self._preparing and now - max(self._prepared_at, min(self._preparing.values())) >= PREPARE_SEC:
            return f"it has been at one prompt for {PREPARE_SEC:.0f} s"
        return None
