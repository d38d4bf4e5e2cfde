"""An event loop whose time passes only by waiting."""

import asyncio
import selectors
import time as real_time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from worker_orcd.fleet import router
from worker_orcd.supervisor import supervisor
from worker_orcd.worker import alarm, now, single, streams, tracing, worker

_MODULES = (alarm, now, router, single, streams, supervisor, tracing, worker)


class JumpingSelector(selectors.SelectSelector):
    """Never waits: if nothing can be read, its clock advances by the timeout."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read now."""
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is scheduled any more"
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on such a clock. Seconds."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)
        self.failures: list[str] = []
        """Errors in callbacks and tasks that are not awaited."""
        self.set_exception_handler(lambda _, context: self.failures.append(repr(context)))

    def cancel_everything(self) -> None:
        """End all tasks."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def time(self) -> float:
        """Its clock."""
        return self.selector.now


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """A loop whose clock replaces the machine's in all of the worker."""
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=loop.time, time=lambda: 1.7e9 + loop.time())
    for module in _MODULES:
        module.time = clock  # type: ignore[attr-defined]
    try:
        yield loop
    finally:
        for module in _MODULES:
            module.time = real_time  # type: ignore[attr-defined]
        loop.close()
