"""How fast sequences are copied. The loop waits for a copy, and streams and stops wait for the loop."""

_FIRST_RATE = 2e6
_SMOOTHING = 0.2
_HOPE = 1.05
"""Each refused copy raises the predicted rate by this factor. Otherwise one slow copy could end all copying."""


class CopyRate:
    """Bytes copied per millisecond, smoothed."""

    def __init__(self) -> None:
        self._rate = _FIRST_RATE

    def allows(self, size: int, most_ms: float) -> bool:
        """Whether copying so many bytes is predicted to take at most this long."""
        if size <= self._rate * most_ms:
            return True
        self._rate *= _HOPE
        return False

    def learn(self, size: int, took_ms: float) -> None:
        """Update the rate from a copy."""
        if took_ms > 0:
            self._rate += _SMOOTHING * (size / took_ms - self._rate)
