"""Many clients at once: some vanish, some cancel in storms (G3, G4, G10)."""

import concurrent.futures
import time

import httpx2
import psutil

from tests.faults.ledger import Ledger
from tests.helpers import at_rest, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

CROWD = 200
STORM = 500
CONNECTIONS = 20


def descriptors(worker: RunningWorker) -> int:
    """File descriptors of the front and its engine together."""
    return sum(psutil.Process(pid).num_fds() for pid in (worker.process.pid, worker.engine_pid))


def test_two_hundred_clients_that_vanish_mid_stream_leave_nothing(
    victim: RunningWorker, ledger: Ledger
) -> None:
    """All jobs are stopped, all cells and descriptors are free, and the next job runs at once."""
    victim.execute(fresh_id("first"), max_tokens=1).finished()
    at_rest(victim)
    before = descriptors(victim)
    streams = [
        victim.execute(fresh_id("crowd"), script(10, token_ms=2), max_tokens=2000) for _ in range(CROWD)
    ]
    wait_until(
        lambda: sum(stream.status == 200 for stream in streams) == CROWD, within_sec=60, what="all there"
    )
    streams[0].tokens_seen(2)
    for stream in streams:
        stream.leave()
        ledger.faults["client that vanishes"] += 1
    at_rest(victim)
    states = {victim.record(stream.job_id)["state"] for stream in streams}
    assert states == {"cancelled"}
    wait_until(lambda: descriptors(victim) <= before + 2, within_sec=10, what="descriptors given back")
    assert victim.execute(fresh_id("next"), max_tokens=2).finished().events[-1].event == "end"


def test_five_hundred_jobs_are_cancelled_at_once_from_twenty_connections(ledger: Ledger) -> None:
    """Running and queued, each cancelled twice: 202 every time, one CANCELLED each, and nothing is held."""
    with running_worker(max_queue=STORM) as worker:
        streams = [worker.execute(fresh_id("storm"), script(10, token_ms=5)) for _ in range(STORM)]
        wait_until(
            lambda: sum(stream.status == 200 for stream in streams) == STORM, within_sec=90, what="all taken"
        )
        streams[0].tokens_seen(1)
        asked_at = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(lambda part: cancel_all(worker, part), shares(streams)))
        assert {status for part in answers for status in part} == {202}
        for stream in streams:
            ledger.whole(stream)
            assert stream.events[-1].data["code"] == "CANCELLED"
            ledger.reported(f"of {STORM} jobs at once", worker.record(stream.job_id)["receipt"])
        took = max(stream.events[-1].at for stream in streams) - asked_at
        print(f"{STORM} jobs cancelled in {took:.2f} s")
        assert max(ledger.terminal_ms[f"of {STORM} jobs at once"]) <= 5000
        at_rest(worker)


def shares(streams: list[Stream]) -> list[list[Stream]]:
    """Streams for each connection; every stream is cancelled twice."""
    return [(streams + streams)[n::CONNECTIONS] for n in range(CONNECTIONS)]


def cancel_all(worker: RunningWorker, streams: list[Stream]) -> list[int]:
    """Cancel these jobs over one connection, one after the other. Returns the statuses."""
    with httpx2.Client(base_url=worker.url, timeout=30.0, trust_env=False) as client:
        return [client.post("/cancel", json={"job_id": stream.job_id}).status_code for stream in streams]
