"""A starved engine is not stuck (G16): on real processes, beside neighbours that use every CPU that it may use."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.supervisor.liveness import SILENCE_PATIENCE, Activity, Waiting
from worker_orcd.supervisor.proc import ProcessActivity
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(3600)"


@contextmanager
def process(code: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python process that runs this until the end of the block."""
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextmanager
def starved(pid: int, neighbours: int = 16) -> Iterator[None]:
    """A process whose threads only get CPU time that others leave over, which is a turn of some ms every ten seconds.
    They are of its session: Linux shares CPU time out between sessions first."""
    cpu = min(os.sched_getaffinity(0))
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    with ExitStack() as stack:
        for _ in range(neighbours):
            os.sched_setaffinity(stack.enter_context(process(SPIN)).pid, {cpu})
        for thread in threads:
            os.sched_setaffinity(thread, {cpu})
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        yield


def looks(activity: ProcessActivity, sec: float) -> Iterator[Activity]:
    """The process's activity over this time, ten times a second."""
    until = time.monotonic() + sec
    while time.monotonic() < until:
        threading.Event().wait(0.1)
        seen = activity.look()
        assert seen is not None
        yield seen


def test_computing_is_seen_as_computing() -> None:
    """As much as the process's own CPU time."""
    with process(SPIN) as child:
        activity, ps = ProcessActivity(child.pid), psutil.Process(child.pid)
        wait_until(lambda: ps.cpu_times().user > 0.2, what="some computing")
        before, cpu_before = activity.look(), ps.cpu_times()
        wait_until(lambda: ps.cpu_times().user > cpu_before.user + 0.5, within_sec=60, what="more computing")
        cpu_after, after = ps.cpu_times(), activity.look()
        assert before is not None
        assert after is not None
        used = sum(cpu_after[:2]) - sum(cpu_before[:2])
        assert after.computed_sec - before.computed_sec == pytest.approx(used, abs=0.1)


@pytest.mark.parametrize("sig", [None, signal.SIGSTOP])
def test_a_process_that_sleeps_or_is_stopped_waits_for_nothing(sig: signal.Signals | None) -> None:
    """A deadlocked process looks like a sleeping one; a debugger's stop looks like SIGSTOP."""
    with process(SLEEP if sig is None else SPIN) as child:
        activity, ps = ProcessActivity(child.pid), psutil.Process(child.pid)
        asleep = psutil.STATUS_SLEEPING if sig is None else psutil.STATUS_STOPPED
        if sig is not None:
            child.send_signal(sig)
        wait_until(lambda: ps.status() == asleep, what="sleep")
        first, *later = looks(activity, 0.5)
        assert {seen.waiting for seen in later} == {Waiting.NOTHING}
        assert later[-1].computed_sec == pytest.approx(first.computed_sec, abs=0.011)


def test_a_starved_process_waits_for_a_cpu() -> None:
    """It computes next to nothing, and is never seen asleep."""
    with process(SPIN) as child, starved(child.pid):
        first, *later = looks(ProcessActivity(child.pid), 2.0)
        assert {seen.waiting for seen in later} == {Waiting.CPU}
        assert later[-1].computed_sec - first.computed_sec < 0.5


def test_nothing_is_seen_of_a_dead_process() -> None:
    """Its activity is None, which counts as wall time."""
    with process(SPIN) as child:
        activity = ProcessActivity(child.pid)
    assert activity.look() is None


@pytest.fixture
def worker() -> Iterator[RunningWorker]:
    """A worker of its own, since its engine is harmed."""
    with running_worker() as worker:
        yield worker


def test_a_starved_engine_is_not_killed(worker: RunningWorker) -> None:
    """It is silent for twice as long as a sleeping one may be; then it does its work."""
    stream = worker.execute(fresh_id("patient"), script(token_ms=1), max_tokens=2000).tokens_seen(5)
    pid = worker.engine_pid
    gaps = []
    with starved(pid):
        starved_until = time.monotonic() + 2 * SILENCE_PATIENCE.idle
        while time.monotonic() < starved_until:
            threading.Event().wait(0.2)
            gaps.append(time.monotonic() - stream.events[-1].at)
            assert worker.engine_pid == pid
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))
    assert max(gaps) > SILENCE_PATIENCE.idle, "it was not starved"
    stream.finished(within_sec=120).assert_whole()
    assert len(stream.tokens) == 2000
    assert worker.health()["engine_restarts"] == 0


def test_an_engine_that_computes_without_end_is_found(worker: RunningWorker) -> None:
    """An endless call: it uses its CPU and answers nothing. Health is not 200 before the next one is there (G11)."""
    stream = worker.execute(fresh_id("endless"), script(token_ms=1, spin_at=8), max_tokens=20)
    neighbour = worker.execute(fresh_id("neighbour"), script(token_ms=50), max_tokens=100)
    stream.tokens_seen(7)
    wait_until(
        lambda: worker.health()["engine_restarts"] >= 1,
        within_sec=10 * SILENCE_PATIENCE.computing,
        what="a restart",
    )
    assert "computed for" in worker.narrated("engine_lost")["human"] + str(worker.narrated("engine_lost"))
    worker.cancel(stream.job_id)
    stream.finished(within_sec=30)
    neighbour.finished(within_sec=120).assert_whole()
    assert len(neighbour.tokens) == 100
    at_rest(worker)


def test_a_stopped_engine_is_found_while_others_starve_the_machine(worker: RunningWorker) -> None:
    """SIGSTOP is not starvation, even where all other processes starve."""
    cpus = os.sched_getaffinity(0)
    with ExitStack() as stack:
        for cpu in cpus:
            os.sched_setaffinity(stack.enter_context(process(SPIN)).pid, {cpu})
        worker.signal_engine(signal.SIGSTOP)
        wait_until(lambda: worker.health()["engine_restarts"] >= 1, within_sec=60, what="a restart")
        at_rest(worker)
