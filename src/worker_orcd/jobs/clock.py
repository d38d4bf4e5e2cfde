"""A point in time, which callers pass to the core."""

from datetime import UTC, datetime
from typing import NamedTuple


class Timestamp(NamedTuple):
    """A point in time on two clocks, in seconds: `mono` for durations, `unix` for dates."""

    mono: float
    unix: float


def rfc3339(unix: float) -> str:
    """A Unix time (seconds) as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def millis(start: float, end: float) -> float:
    """Milliseconds from `start` to `end` (seconds), never negative, to the microsecond."""
    return round(max(0.0, end - start) * 1000, 3)
