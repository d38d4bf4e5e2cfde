"""The audit of the engine's ledger in real processes: fault → log event → counter → repair (G4).

The scripted engine's `leak` makes the cells of a job outlast so many attempts to free them; the first is that of its
end, the second the audit's repair.
"""

from collections.abc import Iterator

import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

CANNOT_BE_REPAIRED = 10**6


@pytest.fixture
def leaky() -> Iterator[RunningWorker]:
    """A worker of its own, so that faults can be counted: two jobs at a time, no sequence ids for warm prefixes."""
    with running_worker(parallel=2, prefix_cache="off") as worker:
        yield worker


def faults(worker: RunningWorker) -> int:
    """The number of audit faults, by the counter."""
    lines = worker.client.get("/metrics").text.splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("worker_audit_faults_total")]
    return int(float(value))


def reported(worker: RunningWorker) -> list[str]:
    """The error events about them."""
    errors = [event for event in worker.narration() if event["action"] == "error"]
    assert {(event["level"], event["code"]) for event in errors} <= {("ERROR", "INTERNAL")}
    return [event["message"] for event in errors]


def runs_well(worker: RunningWorker, at_once: int = 1) -> list[Stream]:
    """The next jobs get the same tokens as on a clean engine."""
    prompt = script(token_ms=5)
    streams = [worker.execute(fresh_id("next"), prompt, max_tokens=30, seed=0) for _ in range(at_once)]
    for stream in streams:
        stream.finished().assert_whole()
        assert stream.events[-1].event == "end"
        assert stream.text.split() == [f"w{n}" for n in range(30)]
    return streams


@pytest.mark.parametrize("how", ["ends", "is cancelled"])
def test_cells_that_outlast_their_job_are_reported_counted_and_freed_before_its_terminal_event(
    leaky: RunningWorker, how: str
) -> None:
    """One fault, one error event; when the terminal event arrives, no cells are held."""
    stream = leaky.execute(fresh_id(), script(leak=1, token_ms=3), max_tokens=20 if how == "ends" else 2000)
    if how != "ends":
        stream.tokens_seen(3)
        leaky.cancel(stream.job_id)
    stream.wait(lambda s: s.terminal is not None, what="the terminal event")
    health = leaky.health()
    assert (health["kv_cells_used"], health["jobs_running"]) == (0, 0)
    assert faults(leaky) == 1
    leaky.narrated("error")
    (message,) = reported(leaky)
    assert message.startswith("sequence 0 held ")
    assert message.endswith("KV cells instead of 0; it is repaired")
    stream.finished().assert_whole()
    runs_well(leaky, at_once=2)
    at_rest(leaky)
    assert faults(leaky) == 1


def test_a_sequence_that_stays_dirty_for_a_while_is_not_used_and_comes_back_when_it_is_clean(
    leaky: RunningWorker,
) -> None:
    """It is logged once, not with every audit; the reported number of cells stays correct meanwhile."""
    leaky.execute(fresh_id(), script(leak=5), max_tokens=3).finished().assert_whole()
    leaky.narrated("error")
    (message,) = reported(leaky)
    assert message.endswith("the sequence is not used until its cells are free")
    runs_well(leaky)
    wait_until(lambda: leaky.health()["kv_cells_used"] == 0, what="a clean sequence")
    assert faults(leaky) == len(reported(leaky)) == 1
    runs_well(leaky, at_once=2)
    at_rest(leaky)
    assert leaky.health()["engine_restarts"] == 0


def test_a_sequence_that_cannot_be_freed_is_not_used_any_more_and_without_a_clean_one_the_engine_is_replaced(
    leaky: RunningWorker,
) -> None:
    """Jobs get the other one, and what is held is shown. When more run than there are clean ones, the next engine
    continues what this one held, and nothing is lost."""
    leaky.execute(fresh_id(), script(leak=CANNOT_BE_REPAIRED), max_tokens=3).finished().assert_whole()
    leaky.narrated("error")
    runs_well(leaky)
    health = leaky.health()
    assert (health["status"], health["engine_restarts"], faults(leaky)) == ("healthy", 0, 1)
    assert health["kv_cells_used"] > 0, "the cells are still held, and health reports them"
    first = leaky.execute(fresh_id("first"), script(token_ms=5), max_tokens=2000, seed=0)
    first.tokens_seen(1)
    runs_well(leaky)  # Beside it, and so not without another sequence.
    leaky.cancel(first.job_id)
    first.finished().assert_whole()
    assert first.text.split() == [f"w{n}" for n in range(len(first.tokens))]
    at_rest(leaky)
    assert (leaky.health()["engine_restarts"], faults(leaky)) == (1, 1)
    assert len([event for event in leaky.narration() if event["action"] == "engine_lost"]) == 1
