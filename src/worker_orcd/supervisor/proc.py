"""Reads the activity of a process on this machine from `/proc` (Linux)."""

import os
from pathlib import Path

from worker_orcd.supervisor.liveness import Activity, Waiting

_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
_STATE, _MAJOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS = 0, 9, 11, 12
"""Indices in `stat` after the command's name (proc_pid_stat(5): fields 3, 12, 14 and 15)."""
_WAITING = {"R": Waiting.CPU, "D": Waiting.DISK}


class ProcessActivity:
    """Observes all threads of one process."""

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc") / str(pid)
        self._ticks: dict[str, int] = {}
        self._computed_ticks = 0

    def look(self) -> Activity | None:
        """The activity of the process so far. None if it cannot be read: the process is dead, or this is not Linux."""
        ticks: dict[str, int] = {}
        states: set[str] = set()
        faults = 0
        try:
            for thread in (self._process / "task").iterdir():
                fields = _stat(thread)
                if fields is not None:
                    ticks[thread.name] = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
                    faults += int(fields[_MAJOR_FAULTS])
                    states.add(fields[_STATE])
        except OSError:
            return None
        # Not the sum over all threads, because the duration of a step does not depend on the number of its threads.
        self._computed_ticks += max((now - self._ticks.get(tid, 0) for tid, now in ticks.items()), default=0)
        self._ticks = ticks
        waiting = next((w for state, w in _WAITING.items() if state in states), Waiting.NOTHING)
        return Activity(self._computed_ticks / _TICKS_PER_SEC, faults + self._bytes_read(), waiting)

    def _bytes_read(self) -> int:
        try:
            lines = (self._process / "io").read_text().splitlines()
        except OSError:
            return 0  # Hardened systems restrict this file to debuggers.
        return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, a debugger) or dead."""
    fields = _stat(Path("/proc") / str(pid))
    return fields is None or fields[_STATE] in "TtZX"


def _stat(thread: Path) -> list[str] | None:
    """The fields after the command's name, which may contain any characters."""
    try:
        return (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None  # The thread has just ended.
