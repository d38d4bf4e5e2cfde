"""The engine killed or stopped at random moments, on real processes and the real model (G5, G7, G11).

What is asserted is the same each time: every stream is `started token* (end|error)` with unbroken numbers, what was
sent is a beginning of what an undisturbed run sends, nothing is left behind, and the worker is well again.
"""

import random
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, Stream, wait_until
from worker_orcd.testing.trials import HAIKU, STORY, long_prompt

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


def harm(worker: RunningWorker, sig: signal.Signals) -> None:
    """Send the engine a signal, if there is an engine just now."""
    pid = worker.health()["engine_pid"]
    if pid is not None:
        worker.signal_engine(sig)


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
def test_streams_go_on_after_kills_at_random_moments(victim: RunningWorker, jobs: int, trials: int) -> None:
    """Two kills, wherever they are: reading, decoding, or while the next engine loads. Not a byte differs."""
    undisturbed = [
        [event.data for event in stream.finished().tokens] for stream in scripted_jobs(victim, jobs, "calm")
    ]
    for trial in range(trials):
        moment = random.Random(f"{jobs}-{trial}")
        streams = scripted_jobs(victim, jobs, "harmed")
        for _ in range(2):
            time.sleep(moment.random() * 0.5)
            harm(victim, KILL)
        for stream, whole in zip(streams, undisturbed, strict=True):
            stream.finished(within_sec=60).assert_whole()
            assert [event.data for event in stream.tokens] == whole
            assert stream.events[-1].event == "end"
        at_rest(victim)


def test_streams_go_on_after_engines_that_hang(victim: RunningWorker, trials: int) -> None:
    """Nobody cancels; it is found out, and meanwhile health is not 200."""
    undisturbed = [
        [event.data for event in stream.finished().tokens] for stream in scripted_jobs(victim, 4, "calm")
    ]
    for trial in range(trials):
        streams = scripted_jobs(victim, 4, "hung")
        time.sleep(random.Random(trial).random() * 0.3)
        harm(victim, STOP)
        wait_until(
            lambda: victim.client.get("/health").status_code == 503, within_sec=10, what="honest health"
        )
        for stream, whole in zip(streams, undisturbed, strict=True):
            stream.finished(within_sec=60).assert_whole()
            assert [event.data for event in stream.tokens] == whole
        at_rest(victim)


@pytest.mark.parametrize("sig", [KILL, STOP])
def test_a_cancel_is_finished_in_time_whatever_happens_to_the_engine(
    victim: RunningWorker, sig: signal.Signals, trials: int
) -> None:
    """Before, during and after the fault: CANCELLED within 5 s, once, and the neighbours end as they would have."""
    told_ms: list[float] = []
    for trial in range(2 * trials):
        moment = random.Random(trial)
        streams = scripted_jobs(victim, 6, "storm")
        time.sleep(moment.random() * 0.2)
        cancelled = moment.sample(streams, 3)
        steps: list[Callable[[], object]] = [partial(victim.cancel, stream.job_id) for stream in cancelled]
        steps.insert(moment.randrange(4), partial(harm, victim, sig))
        for step in steps:
            time.sleep(moment.random() * 0.02)
            step()
        for stream in streams:
            stream.finished(within_sec=60).assert_whole()
            if stream in cancelled and (receipt := victim.record(stream.job_id)["receipt"]) is not None:
                assert receipt["kv_cells_after"] == 0
                told_ms.append(receipt["told_ms"])
            elif stream not in cancelled:
                assert stream.events[-1].event == "end"
        at_rest(victim)
    assert told_ms
    print(f"{sig.name}: worst cancel told after {max(told_ms):.0f} ms, n={len(told_ms)}")
    assert max(told_ms) <= 5000


def test_an_engine_killed_while_it_loads_is_started_again(victim: RunningWorker, trials: int) -> None:
    """At random moments of its start, with a job that waits; a cancel meanwhile is told at once."""
    for trial in range(trials):
        harm(victim, KILL)
        waiting = victim.execute(fresh_id("waiting"), script(token_ms=1), max_tokens=5)
        impatient = victim.execute(fresh_id("impatient"), script(token_ms=1), max_tokens=5)
        for _ in range(2):
            time.sleep(random.Random(trial).random() * 0.4)
            harm(victim, KILL)
        victim.cancel(impatient.job_id)
        impatient.finished(within_sec=5.0).assert_whole()
        waiting.finished(within_sec=60.0).assert_whole()
        assert waiting.events[-1].event == "end"
        at_rest(victim)


def test_an_idle_engine_that_is_killed_costs_nobody_anything(victim: RunningWorker) -> None:
    """The next job just runs."""
    harm(victim, KILL)
    stream = victim.execute(fresh_id(), max_tokens=3).finished(within_sec=20.0)
    assert stream.events[-1].event == "end"


# On the real model.


def real_jobs(worker: RunningWorker, count: int) -> list[Stream]:
    """Sampled ones and greedy ones, short prompts and long ones; the same each time."""
    prompts = [STORY, HAIKU, long_prompt(3, 200), long_prompt(4, 120)]
    return [
        worker.execute(
            fresh_id("real"),
            prompts[n % 4],
            template="auto" if n % 4 < 2 else "none",
            ignore_eos=True,
            max_tokens=24,
            temperature=0.0 if n % 3 == 0 else 0.8,
            repetition_penalty=1.1,
            top_k=40,
            seed=n,
        )
        for n in range(count)
    ]


def test_exact_streams_killed_at_random_moments_are_those_of_undisturbed_runs(
    exact_worker: RunningWorker, trials: int
) -> None:
    """Byte for byte, sampled ones too (G7)."""
    undisturbed = [
        [event.data for event in stream.finished().tokens] for stream in real_jobs(exact_worker, 4)
    ]
    for trial in range(trials):
        moment = random.Random(trial)
        streams = real_jobs(exact_worker, 4)
        streams[0].tokens_seen(moment.randint(0, 12))
        time.sleep(moment.random() * 0.2)
        harm(exact_worker, KILL)
        for stream, whole in zip(streams, undisturbed, strict=True):
            stream.finished(within_sec=120).assert_whole()
            assert [event.data for event in stream.tokens] == whole
        assert any(exact_worker.record(stream.job_id)["carried_on"] for stream in streams)
        at_rest(exact_worker)


@pytest.mark.parametrize(("jobs", "sig"), [(1, KILL), (4, STOP), (16, KILL)])
def test_streams_of_the_real_model_lose_double_and_reorder_nothing(
    real_worker: RunningWorker, jobs: int, sig: signal.Signals, trials: int
) -> None:
    """Numbers go on without a gap over the engine's death, and each ends once with all its tokens."""
    for trial in range(trials):
        moment = random.Random(f"{jobs}-{trial}")
        streams = real_jobs(real_worker, jobs)
        if moment.random() < 0.7:
            streams[0].tokens_seen(moment.randint(1, 12))
        time.sleep(moment.random() * 0.3)
        harm(real_worker, sig)
        for stream in streams:
            stream.finished(within_sec=200).assert_whole()
            assert len(stream.tokens) == 24
            assert stream.events[-1].event == "end"
        at_rest(real_worker)
