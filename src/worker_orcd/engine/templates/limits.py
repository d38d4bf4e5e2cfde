"""Limits of the processes that run chat templates or compile grammars. The kernel enforces them."""

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
from pathlib import Path

MAX_CPU_SEC = 2
"""CPU time for compiling and trying a template, and for rendering one conversation."""
MAX_WALL_SEC = 30
"""Wall-clock time for the same. Generous, because on a starved machine 2 s of CPU time take long."""
MAX_MEMORY_BYTES = 256 << 20
"""Address space in addition to what the renderer itself needs."""
_MAX_FILES = 16
_NICENESS = 5
"""Beside a thread that computes steps, a process with this niceness gets a quarter of a CPU."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_prctl = ctypes.CDLL(None).prctl


def die_with(parent: int) -> None:
    """End this process when its parent ends, however suddenly."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def confine(niceness: int = _NICENESS) -> None:
    """Limit memory, files, core dumps and privileges of this process and its children. When memory runs out, the
    kernel ends these processes first; other processes get the CPU before them."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(niceness)
    _limit(resource.RLIMIT_AS, held + MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def start_clocks(cpu_sec: float = MAX_CPU_SEC, wall_sec: float = MAX_WALL_SEC) -> None:
    """End this process when it has used up this time. Children do not inherit these timers."""
    for name in (signal.SIGPROF, signal.SIGALRM):
        # The kernel must end the process: a Python handler would wait for a running C call.
        signal.signal(name, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_sec)
    signal.setitimer(signal.ITIMER_REAL, wall_sec)


def stop_clocks() -> None:
    """Turn the timers off, because the work was done in time."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def end_with(lifeline: socket.socket) -> None:
    """End this process, whatever it computes, as soon as the other end of the lifeline closes.

    Nothing may be sent on the lifeline: the kernel signals a message, too, and may do so after it has been read.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    closed = select.poll()
    closed.register(lifeline, select.POLLRDHUP)
    if closed.poll(0):
        os._exit(0)  # It was already closed, so there is no signal.


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))
