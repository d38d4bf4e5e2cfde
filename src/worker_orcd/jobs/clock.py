"""A point in time, as the core gets it from its caller."""

from datetime import UTC, datetime
from typing import NamedTuple


class Timestamp(NamedTuple):
    """Now, on two clocks: durations are taken from `mono`, dates shown to people from `unix` (both seconds)."""

    mono: float
    unix: float


def rfc3339(unix: float) -> str:
    """A Unix time (seconds) as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def millis(start: float, end: float) -> float:
    """Milliseconds from `start` to `end` (seconds), never negative, to the microsecond."""
    return round(max(0.0, end - start) * 1000, 3)
