"""Helpers for a worker as a child process: find a port, wait, and end it."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_LOOK_EVERY_SEC = 0.02
"""Interval of polling, which takes CPU time from the worker."""


class Process(Protocol):
    """A child process, exec'ed or forked."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def returncode(self) -> Any:
        """The exit code, once `poll` or `wait` has found that the process ended; negative for a signal."""

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises `subprocess.TimeoutExpired`."""

    def send_signal(self, sig: int) -> None:
        """Send a signal."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(look: Callable[[], T | None], *, within_sec: float = 10.0, what: str = "it") -> T:
    """Call `look` repeatedly until it returns something other than None or False, and return that.

    Raises:
        TimeoutError: the time is over.
    """
    deadline = time.monotonic() + within_sec
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within_sec} s for {what}")
        threading.Event().wait(_LOOK_EVERY_SEC)


def end(process: Process, within_sec: float) -> int:
    """End a worker with SIGTERM, so that it ends its engine too. Returns the exit code.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(within_sec)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
