"""The time, which the front passes to the core."""

import time

from worker_orcd.jobs.clock import Timestamp


def now() -> Timestamp:
    """Now, on both clocks."""
    return Timestamp(time.monotonic(), time.time())


def later_than(earlier: Timestamp) -> Timestamp:
    """Now, but later than this on both clocks, also if the system's clock was set back."""
    moment = now()
    return Timestamp(max(moment.mono, earlier.mono), max(moment.unix, earlier.unix + 1e-6))
