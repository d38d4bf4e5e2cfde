"""The engine process: how it starts, which signals it ignores, and when the front judges it stuck."""

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.protocol.framing import encode, front_side
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Ready
from worker_orcd.testing.harness import RunningWorker, running_worker


def test_an_engine_is_started_also_when_its_front_has_a_thousand_connections() -> None:
    """The descriptor of its socket is then above 1023, which `select` does not support."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    ours, theirs = socket.socketpair()
    byte = InterruptByte.create()
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 1500)
    engine = subprocess.Popen(
        [
            *(sys.executable, "-m", "worker_orcd.testing.scripted_engine"),
            *("--socket", str(high), "--interrupt", str(byte.fd), "--front", str(os.getpid())),
        ],
        pass_fds=(high, byte.fd),
        stderr=subprocess.DEVNULL,
    )
    try:
        ours.settimeout(10)
        ours.sendall(encode(Load("m", "w", None, 2, 1000, False, 1, "json")))
        reader = front_side()
        said: list[object] = []
        while not any(isinstance(message, Ready) for message in said):
            said += reader.feed(ours.recv(65536))
    finally:
        engine.kill()
        engine.wait()
        os.close(high)
        ours.close()
        theirs.close()
        byte.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_front_that_was_away_kills_no_healthy_engine() -> None:
    """A suspended machine: the engine's confirmation is in the socket when the front comes back."""
    with running_worker(env={"WORKER_ORCD_SCRIPTED_UNABORTABLE": "1"}) as worker:
        stream = worker.execute("a", script(token_ms=200)).tokens_seen(2)
        asking = threading.Thread(target=worker.cancel, args=["a"])
        asking.start()
        threading.Event().wait(0.03)  # So that the engine is asked, and cannot answer yet.
        worker.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(1.6)
        worker.process.send_signal(signal.SIGCONT)
        asking.join()
        stream.finished()
        at_rest(worker)
        assert worker.health()["engine_restarts"] == 0


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP])
def test_an_engine_that_is_asked_to_terminate_leaves_that_to_its_front(sig: signal.Signals) -> None:
    """A service manager or a terminal signals all processes; jobs that may finish still need the engine."""
    with running_worker() as worker:
        stream = worker.execute("a", script(token_ms=10), max_tokens=60).tokens_seen(5)
        worker.signal_engine(sig)
        worker.process.send_signal(sig)
        worker.process.wait(10)
        stream.finished(within_sec=2)
        assert stream.events[-1].event == "end"
        assert "engine_lost" not in {event["action"] for event in worker.narration()}


@pytest.mark.parametrize(
    "long", [{"prompt": "\U0001f600" * 32000}, {"prompt": "x", "stop": ["\U0001f600" * 4096] * 4}]
)
def test_ended_jobs_do_not_keep_what_was_asked(worker: RunningWorker, long: dict[str, object]) -> None:
    """10,000 records are kept: with the longest prompts they would take 1.3 GB (G10)."""
    front = psutil.Process(worker.process.pid)
    before = front.memory_info().rss
    for _ in range(400):
        job_id = fresh_id("kept")
        worker.cancel(job_id)
        assert b"CANCELLED" in worker.client.post("/execute", json={"job_id": job_id, **long}).content
    assert front.memory_info().rss - before < 16e6
