"""Bounds the memory that llama.cpp may allocate while it loads a model file, whatever the file's metadata contain."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

SPARE_BYTES = 1 << 30
"""For the vocabulary: one of 256,000 tokens takes about 100 MiB."""
_COPIES = 2
"""Weights are mapped, but llama.cpp may keep a second, rearranged copy of them in private memory."""


@contextlib.contextmanager
def loading_within(model_bytes: int) -> Iterator[None]:
    """In this block, limit this process's private memory to what loading a file of this size can need.

    Beyond the limit, allocations fail: llama.cpp then reports an error, or aborts. Mapped files do not count.
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
    """The private, writable memory of this process now, which is what the limit counts."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(kib) << 10
