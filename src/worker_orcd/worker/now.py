"""The time, which the front passes to the core."""

import time

from worker_orcd.jobs.clock import Timestamp


def now() -> Timestamp:
    """Now, on both clocks."""
    return Timestamp(time.monotonic(), time.time())
