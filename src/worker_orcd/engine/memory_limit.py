"""A bound on the memory that llama.cpp takes for a model file while it loads the file, whatever the file says."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

SPARE_BYTES = 1 << 30
"""For a vocabulary: that of 256,000 tokens takes some 100 MiB."""
_COPIES = 2
"""Weights are mapped, but llama.cpp may keep a second, rearranged copy of them in memory of its own."""


@contextlib.contextmanager
def loading_within(model_bytes: int) -> Iterator[None]:
    """In this block, let this process have no more private memory than loading a file of this size can need.

    Beyond it, memory cannot be had: llama.cpp then says so, or aborts. Mapped files do not count.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _private_bytes() + _COPIES * model_bytes + SPARE_BYTES
    if before != resource.RLIM_INFINITY:
        bound = min(bound, before)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _private_bytes() -> int:
    """What counts now: writable memory of this process alone."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(kib) << 10
