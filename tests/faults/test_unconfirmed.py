"""An engine whose death cannot be confirmed (G5): on real processes, with ptrace, and no patch in the worker.

A process in an uninterruptible sleep cannot be made at will. But a process's tracer learns of its death before its
parent is, and until then the parent waits in vain: to the worker that is the same.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.testing.harness import running_worker, wait_until

PTRACE_SEIZE = 0x4206
WALL = 0x40000000
"""`waitpid` of any process that is traced, also if it is no child."""
OWN_INTERPRETERS = {"PYTHONNOUSERSITE": "1"}
"""Then the worker is the parent of its engine, and not the process that tests fork workers off."""
DEADLINE_SEC = 5.0
SLACK_SEC = 1.0


@contextmanager
def keeping_its_death_to_itself(pid: int) -> Iterator[None]:
    """Until this block ends no process learns of this one's death, which has to happen within the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) != 0:
        pytest.skip(f"no process may be traced here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, WALL)[1]):
            pass


def test_when_not_even_the_engines_death_is_confirmed_the_terminal_event_is_written_all_the_same() -> None:
    """CANCELLED by the deadline, `freed_ms` null because nobody knows, unhealthy as long as that lasts; and when the
    death is known, the neighbour goes on and all is well again."""
    with running_worker(env=OWN_INTERPRETERS) as worker:
        victim = worker.execute(fresh_id("victim"), script(token_ms=5)).tokens_seen(2)
        neighbour = worker.execute(fresh_id("neighbour"), script(token_ms=5), max_tokens=200).tokens_seen(2)
        engine = worker.engine_pid
        with keeping_its_death_to_itself(engine):
            os.kill(engine, signal.SIGSTOP)
            asked_at = time.monotonic()
            assert worker.cancel(victim.job_id).status_code == 202
            wait_until(lambda: worker.client.get("/health").status_code == 503, what="honest health")
            victim.finished(within_sec=2 * DEADLINE_SEC).assert_whole()
            error = victim.events[-1]
            assert (error.event, error.data["code"]) == ("error", "CANCELLED")
            assert DEADLINE_SEC - SLACK_SEC <= error.at - asked_at <= DEADLINE_SEC + SLACK_SEC
            receipt = worker.record(victim.job_id)["receipt"]
            assert (receipt["freed_ms"], receipt["kv_cells_after"]) == (None, None)
            assert receipt["terminal_ms"] <= (DEADLINE_SEC + SLACK_SEC) * 1000
            health = worker.client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
            assert health.json()["engine_pid"] == engine
            assert worker.cancel(victim.job_id).status_code == 202
            assert not neighbour.terminal
        worker.ready(within_sec=20.0)
        neighbour.finished().assert_whole()
        assert (len(neighbour.tokens), worker.record(neighbour.job_id)["requeues"]) == (200, 1)
        assert worker.execute(victim.job_id, max_tokens=2).finished().events[-1].event == "end"
        at_rest(worker)


@pytest.mark.parametrize("busy", [False, True])
def test_a_shutdown_does_not_wait_for_an_engine_that_cannot_die(busy: bool) -> None:
    """It exits in time, and each reader got its terminal event."""
    with running_worker(drain_sec=1, env=OWN_INTERPRETERS) as worker:
        streams = [worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(2)] if busy else []
        engine = worker.engine_pid
        with keeping_its_death_to_itself(engine):
            os.kill(engine, signal.SIGSTOP)
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(1 + 1 + SLACK_SEC) == 0
            for stream in streams:
                stream.finished(within_sec=5).assert_whole()
                assert stream.events[-1].data["code"] == "CANCELLED"
                assert stream.events[-1].data["reason"] == "shutdown"
