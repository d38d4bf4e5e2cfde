"""The engine killed or stopped at random moments, on real processes and the real model (G5, G7, G11).

What is asserted is the same each time: every stream is `started progress* token* (end|error)` with unbroken numbers,
what was sent is a beginning of what an undisturbed run sends, nothing is left behind, and the worker is well again.
"""

import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.faults.conftest import FAULT_TRIALS
from tests.faults.ledger import Ledger
from tests.helpers import at_rest, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until
from worker_orcd.testing.trials import HAIKU, STORY, long_prompt

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
EXACT = [(4, KILL)] if FAULT_TRIALS == 1 else [(jobs, sig) for jobs in (1, 4, 16) for sig in (KILL, STOP)]
REAL = [(4, STOP)] if FAULT_TRIALS == 1 else EXACT
SIGNALS = [STOP] if FAULT_TRIALS == 1 else [KILL, STOP]
"""For the real model. The sample has SIGSTOP, which takes longer to find; SIGKILL is in `EXACT`, which proves more."""


def data_of(streams: list[Stream]) -> list[list[dict[str, Any]]]:
    """What the tokens of undisturbed streams say."""
    return [[event.data for event in stream.finished().tokens] for stream in streams]


# On the scripted engine: many moments, many jobs.


def scripted_jobs(worker: RunningWorker, count: int, name: str) -> list[Stream]:
    """Some in prefill, some in decode, some of each length; the same for each name."""
    return [
        worker.execute(
            fresh_id(name),
            script(20 + 150 * (n % 4), token_ms=3, row_ms=0.5),
            max_tokens=40 + 7 * (n % 5),
            seed=n,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("jobs", [1, 4, 16])
def test_streams_continue_after_kills_at_random_moments(
    victim: RunningWorker, ledger: Ledger, jobs: int, trials: int
) -> None:
    """Two kills, wherever they are: reading, decoding, or while the next engine loads. Not a byte differs."""
    undisturbed = data_of(scripted_jobs(victim, jobs, "calm"))
    hit = 0
    for trial in range(trials):
        moment = random.Random(f"{jobs}-{trial}")
        streams = scripted_jobs(victim, jobs, "harmed")
        streams[0].started()
        for within_sec in (0.1, 0.5):
            time.sleep(moment.random() * within_sec)
            ledger.harm(victim, KILL)
        for stream, whole in zip(streams, undisturbed, strict=True):
            ledger.whole(stream, whole)
        hit += ledger.went_on(victim, streams)
        at_rest(victim)
    assert hit > 0, "no kill hit a running job"


def test_streams_continue_after_engines_that_hang(victim: RunningWorker, ledger: Ledger, trials: int) -> None:
    """Without any cancel the hang is detected; until then health is not 200."""
    undisturbed = data_of(scripted_jobs(victim, 4, "calm"))
    hit = 0
    for trial in range(trials):
        streams = scripted_jobs(victim, 4, "hung")
        streams[0].started()
        time.sleep(random.Random(trial).random() * 0.2)
        ledger.harm(victim, STOP)
        wait_until(
            lambda: victim.client.get("/health").status_code == 503, within_sec=10, what="honest health"
        )
        for stream, whole in zip(streams, undisturbed, strict=True):
            ledger.whole(stream, whole)
        hit += ledger.went_on(victim, streams)
        at_rest(victim)
    assert hit > 0, "no stop hit a running job"


@pytest.mark.parametrize("sig", [KILL, STOP])
def test_a_cancel_is_finished_in_time_whatever_happens_to_the_engine(
    victim: RunningWorker, ledger: Ledger, sig: signal.Signals, trials: int
) -> None:
    """Before, during and after the fault: CANCELLED within 5 s, once, and the neighbours end as they would have."""
    what = f"around a {sig.name}"
    restarts, hit = victim.health()["engine_restarts"], 0
    for trial in range(2 * trials):
        moment = random.Random(trial)
        streams = scripted_jobs(victim, 6, "storm")
        streams[0].started()
        time.sleep(moment.random() * 0.2)
        cancelled = moment.sample(streams, 3)
        steps: list[Callable[[], object]] = [partial(victim.cancel, stream.job_id) for stream in cancelled]
        steps.insert(moment.randrange(4), partial(ledger.harm, victim, sig))
        for step in steps:
            time.sleep(moment.random() * 0.02)
            step()
        for stream in streams:
            ledger.whole(stream)
            if stream in cancelled:
                ledger.reported(what, victim.record(stream.job_id)["receipt"])
            else:
                assert stream.events[-1].event == "end"
        hit += ledger.went_on(victim, streams)
        at_rest(victim)
    assert max(ledger.terminal_ms[what]) <= 5000
    assert hit > 0, "no fault hit a running job"
    assert victim.health()["engine_restarts"] >= restarts + 2 * trials


def test_an_engine_killed_while_it_loads_is_started_again(ledger: Ledger, trials: int) -> None:
    """At random moments of its start, with a job that waits; a cancel in between ends the job at once."""
    with running_worker(env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "0.4"}) as victim:
        for trial in range(trials):
            dead = victim.engine_pid
            ledger.harm(victim, KILL)
            waiting = victim.execute(fresh_id("waiting"), script(token_ms=1), max_tokens=5)
            impatient = victim.execute(fresh_id("impatient"), script(token_ms=1), max_tokens=5)
            moment = random.Random(trial)
            for _ in range(2):
                dead = wait_until(partial(successor_of, victim, dead), what="the next engine")
                time.sleep(moment.random() * 0.3)  # It loads for longer than that.
                ledger.harm(victim, KILL)
            victim.cancel(impatient.job_id)
            ledger.whole(impatient, within_sec=5.0)
            ledger.whole(waiting)
            assert [event.data["code"] for event in impatient.events] == ["CANCELLED"]
            assert waiting.events[-1].event == "end"
            at_rest(victim)
        assert victim.health()["engine_restarts"] == 3 * trials


def successor_of(worker: RunningWorker, dead: int) -> int | None:
    """The process id of the engine that is started instead of this one."""
    pid: int | None = worker.health()["engine_pid"]
    return None if pid == dead else pid


def test_the_death_of_an_idle_engine_costs_no_job_anything(victim: RunningWorker, ledger: Ledger) -> None:
    """The next job runs as usual."""
    ledger.harm(victim, KILL)
    stream = victim.execute(fresh_id(), max_tokens=3).finished(within_sec=20.0)
    assert stream.events[-1].event == "end"


# On the real model.


def real_jobs(worker: RunningWorker, count: int, tokens: int = 24) -> list[Stream]:
    """Sampled ones and greedy ones, short prompts and long ones; the same each time."""
    prompts = [STORY, HAIKU, long_prompt(3, 200), long_prompt(4, 120)]
    return [
        worker.execute(
            fresh_id("real"),
            prompts[n % 4],
            template="auto" if n % 4 < 2 else "none",
            ignore_eos=True,
            max_tokens=tokens,
            temperature=0.0 if n % 3 == 0 else 0.8,
            repetition_penalty=1.1,
            top_k=40,
            seed=n,
        )
        for n in range(count)
    ]


def harm_them_somewhere(
    worker: RunningWorker, streams: list[Stream], ledger: Ledger, sig: signal.Signals, moment: random.Random
) -> None:
    """In their prefill or in their decode: before the first of them has got half of its tokens."""
    streams[0].started()
    if moment.random() < 0.7:
        streams[0].tokens_seen(moment.randint(1, 10))
    time.sleep(moment.random() * 0.03)
    ledger.harm(worker, sig)


@pytest.mark.parametrize(("jobs", "sig"), EXACT)
def test_exact_streams_harmed_at_random_moments_are_those_of_undisturbed_runs(
    exact_worker: RunningWorker, ledger: Ledger, jobs: int, sig: signal.Signals, trials: int
) -> None:
    """Byte for byte, sampled ones too (G7)."""
    undisturbed = data_of(real_jobs(exact_worker, jobs))
    hit = 0
    for trial in range(trials):
        streams = real_jobs(exact_worker, jobs)
        harm_them_somewhere(exact_worker, streams, ledger, sig, random.Random(f"{jobs}-{trial}"))
        for stream, whole in zip(streams, undisturbed, strict=True):
            ledger.whole(stream, whole, within_sec=200)
        hit += ledger.went_on(exact_worker, streams)
        at_rest(exact_worker)
    assert hit > 0, "no fault hit a running job"


@pytest.mark.parametrize(("jobs", "sig"), REAL)
def test_streams_of_the_real_model_lose_double_and_reorder_nothing(
    real_worker: RunningWorker, ledger: Ledger, jobs: int, sig: signal.Signals, trials: int
) -> None:
    """Numbers continue without a gap over the engine's death, and each stream ends once with all its tokens."""
    hit = 0
    for trial in range(trials):
        streams = real_jobs(real_worker, jobs)
        harm_them_somewhere(real_worker, streams, ledger, sig, random.Random(f"{jobs}-{trial}"))
        for stream in streams:
            ledger.whole(stream, within_sec=200)
            assert len(stream.tokens) == 24
            assert stream.events[-1].event == "end"
        hit += ledger.went_on(real_worker, streams)
        at_rest(real_worker)
    assert hit > 0, "no fault hit a running job"


@pytest.mark.parametrize("sig", SIGNALS)
def test_a_cancel_on_the_real_model_is_finished_in_time_whatever_happens_to_the_engine(
    real_worker: RunningWorker, ledger: Ledger, sig: signal.Signals, trials: int
) -> None:
    """In a long prefill or in decode, beside two neighbours that end as they would have. In the first trial, and in
    every third, the engine is stopped or dead when both cancels come (G5)."""
    what = f"around a {sig.name}, real model"
    for trial in range(trials):
        restarts = real_worker.health()["engine_restarts"]
        moment = random.Random(trial)
        neighbours = real_jobs(real_worker, 2, tokens=100)
        writing = real_worker.execute(fresh_id("writing"), STORY, ignore_eos=True)
        writing.tokens_seen(moment.randint(1, 4))
        reading = real_worker.execute(fresh_id("reading"), long_prompt(trial, 1500), template="none")
        reading.started()
        steps: list[Callable[[], object]] = [
            partial(real_worker.cancel, reading.job_id),
            partial(real_worker.cancel, writing.job_id),
        ]
        steps.insert(trial % 3, partial(ledger.harm, real_worker, sig))
        for step in steps:
            time.sleep(moment.random() * 0.05)
            step()
        for stream in (reading, writing):
            ledger.whole(stream)
            assert stream.events[-1].data["code"] == "CANCELLED"
            receipt = real_worker.record(stream.job_id)["receipt"]
            ledger.reported(what, receipt)
            if sig is STOP and trial % 3 == 0 and stream is reading:
                assert receipt["freed_ms"] >= 900, "nothing but its death can have confirmed this"
        for stream in neighbours:
            ledger.whole(stream, within_sec=200)
            assert len(stream.tokens) == 100
        at_rest(real_worker)
        assert ledger.went_on(real_worker, neighbours) > 0, "the fault hit no running job"
        assert real_worker.health()["engine_restarts"] > restarts
    assert max(ledger.terminal_ms[what]) <= 5000
