"""SIGTERM and `POST /shutdown`: drain, end every stream, leave no process, exit 0 in time (contract, 6)."""

import signal
import time

import pytest

from tests.helpers import fresh_id, is_gone, script, stalled_client
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

SLOW = script(token_ms=10)


def _exit_code(worker: RunningWorker, within_sec: float) -> int:
    """Wait for its end."""
    wait_until(lambda: worker.process.poll() is not None, within_sec=within_sec, what="the exit")
    code = worker.process.returncode
    assert isinstance(code, int)
    return code


def _assert_gone(pid: int) -> None:
    """Wait until no engine process is left."""
    wait_until(lambda: is_gone(pid), within_sec=2.0, what=f"the end of process {pid}")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "POST /shutdown"])
def test_a_worker_drains_before_it_goes(how: str) -> None:
    """New work is refused, `/cancel` still answers, jobs finish or are cancelled, and then it exits 0."""
    with running_worker(drain_sec=1.5, parallel=3) as worker:
        engine = worker.engine_pid
        short = worker.execute("short", SLOW, max_tokens=20)
        cancelled = worker.execute("cancelled", SLOW)
        endless = worker.execute("endless", SLOW)
        for stream in (short, cancelled, endless):
            stream.tokens_seen(1)
        waiting = worker.execute("waiting", SLOW).wait(lambda s: s.status == 200, what="200")
        asked_at = time.monotonic()
        if how.startswith("SIG"):
            worker.process.send_signal(signal.Signals[how])
        else:
            answer = worker.client.post("/shutdown")
            assert (answer.status_code, answer.json()) == (202, {"status": "draining"})
        wait_until(lambda: worker.health()["status"] == "draining", what="draining")

        assert worker.client.get("/health").status_code == 503
        assert worker.client.get("/readyz").status_code == 503
        assert worker.client.get("/livez").status_code == 200
        refused = worker.execute("too-late").finished()
        assert refused.status == 503
        assert refused.refusal is not None
        assert (refused.refusal["code"], refused.refusal["retriable"]) == ("DRAINING", True)
        assert int(refused.headers["retry-after"]) >= 1
        assert worker.cancel("cancelled").status_code == 202
        assert worker.cancel("unknown").status_code == 202

        assert _exit_code(worker, within_sec=5.0) == 0
        assert 1.5 <= time.monotonic() - asked_at <= 3.5
        reasons = {}
        for stream in (short, cancelled, endless, waiting):
            stream.finished(within_sec=1.0).assert_whole()
            reasons[stream.job_id] = stream.events[-1].data.get("reason")
        assert short.events[-1].event == "end"
        assert reasons == {"short": None, "cancelled": "client", "endless": "shutdown", "waiting": "shutdown"}
        assert endless.events[-1].data["code"] == "CANCELLED"
        _assert_gone(engine)
        reported = worker.narration()
        assert (reported[-1]["action"], reported[-1]["exit_code"]) == ("shutdown", 0)
        assert reported[-1]["reason"] == how
        assert [event["action"] for event in reported].count("drain") == 1
        assert "engine_lost" not in {event["action"] for event in reported}
        stops = {event["job_id"]: event for event in reported if event["action"] == "cancel"}
        for stream in (endless, waiting):
            stop = stops[stream.job_id]
            assert (stop["reason"], stop["correlation_id"]) == (
                "shutdown",
                stream.headers["x-correlation-id"],
            )


def test_by_default_it_is_gone_within_five_seconds_even_if_the_engine_is_stopped() -> None:
    """4 s of drain, then the job is cancelled (`shutdown`), the stuck engine is killed, and the exit is still in
    time."""
    with running_worker() as worker:
        engine = worker.engine_pid
        stream = worker.execute("stuck", SLOW).tokens_seen(1)
        worker.signal_engine(signal.SIGSTOP)
        asked_at = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert _exit_code(worker, within_sec=8.0) == 0
        took = time.monotonic() - asked_at
        stream.finished(within_sec=1.0).assert_whole()
        error = stream.events[-1].data
        assert (error["code"], error["reason"]) == ("CANCELLED", "shutdown")
        _assert_gone(engine)
        assert took <= 5.0


@pytest.mark.parametrize("engine_is", [pytest.param("running", marks=pytest.mark.nightly), "stopped"])
def test_it_is_gone_in_time_also_beside_a_reader_that_takes_nothing(engine_is: str) -> None:
    """There is one deadline for the drain, the stops and what streams still have to send."""
    with (
        running_worker(drain_sec=1, max_tokens_out=8000) as worker,
        stalled_client(worker, "stalled", prompt=script(token_ms=0.3), max_tokens=8000),
    ):
        wait_until(lambda: worker.record("stalled").get("tokens_out", 0) > 6000, within_sec=60, what="tokens")
        worker.execute("endless", SLOW).tokens_seen(1)
        if engine_is == "stopped":
            worker.signal_engine(signal.SIGSTOP)
        asked_at = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert _exit_code(worker, within_sec=8.0) == 0
        assert time.monotonic() - asked_at <= 2.0


def test_an_idle_worker_goes_at_once_even_if_the_engine_is_stopped() -> None:
    """The worker leaves no process."""
    with running_worker() as worker:
        engine = worker.engine_pid
        worker.signal_engine(signal.SIGSTOP)
        asked_at = time.monotonic()
        worker.process.send_signal(signal.SIGINT)
        assert _exit_code(worker, within_sec=5.0) == 0
        assert time.monotonic() - asked_at <= 2.0
        _assert_gone(engine)


def test_a_terminal_that_closes_sends_two_hangups_and_they_drain_once() -> None:
    """The kernel and the shell each send one. A signal of another kind is still the second, and stops at once."""
    with running_worker() as worker:
        short = worker.execute("short", script(token_ms=5), max_tokens=100).tokens_seen(1)
        worker.execute("endless", SLOW).tokens_seen(1)
        for _ in range(2):
            worker.process.send_signal(signal.SIGHUP)
            wait_until(lambda: worker.health()["status"] == "draining", what="draining")
        assert short.finished(within_sec=10.0).events[-1].event == "end"
        worker.process.send_signal(signal.SIGTERM)
        assert _exit_code(worker, within_sec=5.0) == 0
        assert "cancel" not in {event["action"] for event in worker.narration()}, "it stopped at once"
        assert worker.narration()[-1]["action"] == "shutdown"


def test_who_started_the_worker_with_nohup_does_not_want_it_to_hear_of_hangups() -> None:
    """SIGHUP stays ignored, as it was when the worker was started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running_worker() as worker:
            worker.process.send_signal(signal.SIGHUP)
            assert worker.execute("later", SLOW, max_tokens=3).finished().events[-1].event == "end"
            assert worker.health()["status"] == "healthy"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_asking_again_over_http_changes_nothing_and_a_first_signal_still_drains() -> None:
    """A retried request, or a preStop hook followed by SIGTERM, does not cut the drain short."""
    with running_worker() as worker:
        stream = worker.execute("running", script(token_ms=5), max_tokens=200).tokens_seen(1)
        for _ in range(3):
            answer = worker.client.post("/shutdown")
            assert (answer.status_code, answer.json()) == (202, {"status": "draining"})
        worker.process.send_signal(signal.SIGTERM)
        assert _exit_code(worker, within_sec=8.0) == 0
        stream.finished(within_sec=1.0).assert_whole()
        assert stream.events[-1].event == "end"


def test_a_second_signal_stops_at_once() -> None:
    """The drain ends early, and the engine ends too."""
    with running_worker() as worker:
        engine = worker.engine_pid
        stream = worker.execute("running", SLOW).tokens_seen(1)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: worker.health()["status"] == "draining", what="draining")
        asked_at = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert _exit_code(worker, within_sec=5.0) == 0
        assert time.monotonic() - asked_at <= 2.0  # Of the drain there are four seconds left.
        stream.finished(within_sec=1.0)
        _assert_gone(engine)
        last = worker.narration()[-1]
        assert (last["action"], last["reason"], last["exit_code"]) == ("shutdown", "SIGTERM", 0)


@pytest.mark.parametrize("engine_is", ["running", "stopped"])
def test_no_engine_outlives_a_front_that_is_killed(engine_is: str) -> None:
    """After kill -9 of the front during a job, the engine process ends too, in any state."""
    with running_worker() as worker:
        engine = worker.engine_pid
        stream = worker.execute(fresh_id(), SLOW).tokens_seen(1)
        if engine_is == "stopped":
            worker.signal_engine(signal.SIGSTOP)
        worker.process.kill()
        assert _exit_code(worker, within_sec=5.0) == -signal.SIGKILL
        _assert_gone(engine)
        stream.finished(within_sec=1.0)
