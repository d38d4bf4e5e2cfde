"""A real second model, Gemma 3 270M: sliding windows, and another vocabulary (G1, G4, G6, G7, G13, G15).

`make outside` installs it. One thread computes: more of them wait for each other on a busy machine, and nothing that is
asserted here depends on how many there are.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.helpers import at_rest, fresh_id
from tests.programs import find
from tests.real.cancels import assert_steps_are_done_beside_steady_cancels, metric, storm
from worker_orcd.testing.harness import RunningWorker, Stream, free_port, running_worker, wait_until
from worker_orcd.testing.trials import (
    STORY,
    Begin,
    decoding,
    ending,
    long_prompt,
    prefilling,
    starting,
    stop_trials,
    stopped_in_time,
)

pytestmark = [pytest.mark.needs("gemma3"), pytest.mark.real, pytest.mark.timeout(900)]
WINDOW = 512
"""Positions that the layers with a sliding window look back."""
TOKENS = 40
MINUTES = 300
"""How long a job may take on a busy machine, in seconds."""


@pytest.fixture(scope="module")
def _gemma() -> Iterator[RunningWorker]:
    with running_worker(
        "llama", wait=False, model=find("gemma3"), parallel=6, context_length=8192, threads=1
    ) as worker:
        yield worker.ready(within_sec=180)


@pytest.fixture
def gemma(_gemma: RunningWorker) -> Iterator[RunningWorker]:
    """Gemma 3 270M. Each test leaves nothing held, and no audit finds a fault."""
    yield _gemma
    at_rest(_gemma)
    assert _gemma.health()["kv_cells_used"] == 0
    assert metric(_gemma, "worker_audit_faults_total") == 0


def neighbour(
    worker: RunningWorker, seed: int, tokens: int = TOKENS, prompt: str = STORY, **fields: Any
) -> Stream:
    """A job that generates for a while."""
    fields |= {"template": "none", "ignore_eos": True, "max_tokens": tokens, "seed": seed}
    return worker.execute(fresh_id("neighbour"), prompt, **fields)


def some_prefill(worker: RunningWorker, stream: Stream) -> None:
    """Wait until some of a job's prompt is computed."""
    stream.wait(lambda s: s.status == 200, what="an answer")
    wait_until(
        lambda: worker.record(stream.job_id)["prompt_tokens_processed"] > 0,
        within_sec=MINUTES,
        what="prefill",
    )


def assert_all_there(stream: Stream, tokens: int = TOKENS) -> None:
    """The stream ended by itself with all its tokens, in order."""
    stream.finished(MINUTES).assert_whole()
    assert stream.events[-1].data.get("stop_reason") == "length", stream.events[-1]
    assert stream.events[-1].data["tokens_out"] == tokens


@pytest.mark.parametrize(
    ("begin", "trials", "phase"),
    [
        (prefilling, 5, "prefill"),
        pytest.param(decoding, 12, "decode", marks=pytest.mark.nightly),
        pytest.param(starting, 12, "prefill", marks=pytest.mark.nightly),
        pytest.param(ending, 12, "decode", marks=pytest.mark.nightly),
    ],
)
def test_computing_stops_in_time(gemma: RunningWorker, begin: Begin, trials: int, phase: str) -> None:
    """Cancels at random moments of each phase; with the terminal event in hand nothing is held any more."""

    def look() -> None:
        health = gemma.health()
        assert (health["kv_cells_used"], health["jobs_running"], health["jobs_queued"]) == (0, 0, 0)

    receipts = stop_trials(gemma, begin, trials, pause=time.sleep, on_terminal=look)
    assert all(receipt["kv_cells_after"] == 0 for receipt in receipts)
    assert len([receipt for receipt in receipts if receipt["phase"] == phase]) >= trials // 5
    stopped_in_time(begin.__name__, [receipt["stopped_ms"] for receipt in receipts])


def test_neighbours_of_a_storm_of_cancels_get_all_their_tokens(gemma: RunningWorker) -> None:
    """Prefills and decodes are cancelled beside them at random moments."""
    neighbours = [neighbour(gemma, seed) for seed in range(3)]
    assert storm(gemma, fresh_id("storm"), neighbours) > 0
    for stream in neighbours:
        assert_all_there(stream)


@pytest.mark.nightly
def test_steps_are_done_beside_steady_cancels(gemma: RunningWorker) -> None:
    """Every stream makes progress."""
    assert_steps_are_done_beside_steady_cancels(gemma, [neighbour(gemma, seed, 1500) for seed in range(3)])


@pytest.mark.nightly
def test_jobs_continue_after_the_engine_was_killed(gemma: RunningWorker) -> None:
    """Some decode, one is in its prefill; each gets the rest of its tokens from the next engine, none twice."""
    restarts = gemma.health()["engine_restarts"]
    for trial in range(2):
        streams = [neighbour(gemma, seed).tokens_seen(2, MINUTES) for seed in (20, 21)]
        waiting = gemma.execute(fresh_id("long"), long_prompt(trial, 1200), template="none", max_tokens=4)
        some_prefill(gemma, waiting)
        time.sleep(random.Random(trial).random() * 0.5)
        gemma.signal_engine(signal.SIGKILL)
        for stream in streams:
            assert_all_there(stream)
        assert_all_there(waiting, 4)
        assert gemma.record(waiting.job_id)["requeues"] == 1
        gemma.ready(180)
    assert gemma.health()["engine_restarts"] == restarts + 2


def test_short_jobs_that_were_placed_first_and_end_cost_the_long_ones_nothing(gemma: RunningWorker) -> None:
    """llama.cpp gives cells that a window has left to a neighbour. No audit takes that for a fault and has a prompt
    computed again: each prompt token is computed once, and no job is requeued."""
    before = metric(gemma, 'worker_prompt_tokens_total{source="computed"}')
    uncached = partial(neighbour, gemma, cache_prompt=False)  # So that computed tokens can be counted.
    short = [uncached(seed, 4, "Once upon a time") for seed in range(2)]
    for stream in short:
        stream.tokens_seen(1, MINUTES)
    long = [uncached(seed, TOKENS, long_prompt(seed, WINDOW + 100 * (seed - 4))) for seed in (5, 6)]
    for stream in long:
        some_prefill(gemma, stream)
    for seed, stream in enumerate(short, 30):
        assert_all_there(stream, 4)
        assert_all_there(uncached(seed, 4, "Once upon a time"), 4)
    for stream in long:
        assert_all_there(stream)
    records = [gemma.record(stream.job_id) for stream in long]
    assert all(record["prompt_tokens"] > WINDOW for record in records)
    assert all(record["prompt_tokens_processed"] == record["prompt_tokens"] for record in records)
    assert all(record["requeues"] == 0 for record in records)
    rest = (
        metric(gemma, 'worker_prompt_tokens_total{source="computed"}')
        - before
        - sum(r["prompt_tokens"] for r in records)
    )
    assert 0 < rest < 100, "prompt tokens were computed more than once"


@pytest.mark.nightly
def test_jobs_are_requeued_when_cells_run_out_and_get_all_their_tokens() -> None:
    """Two jobs grow into room for one and a half; the younger one waits and continues where it was."""
    with running_worker(
        "llama", wait=False, model=find("gemma3"), parallel=4, context_length=512, threads=1
    ) as worker:
        worker.ready(within_sec=180)
        streams = [neighbour(worker, seed, 200, long_prompt(seed, 120)) for seed in (1, 2, 3)]
        for stream in streams:
            assert_all_there(stream, 200)
        assert sum(worker.record(stream.job_id)["requeues"] for stream in streams) > 0
        at_rest(worker)
        assert worker.health()["engine_restarts"] == 0
        assert metric(worker, "worker_audit_faults_total") == 0


def test_exact_is_refused_by_the_type_of_the_weights() -> None:
    """Q4_K_M: llama.cpp multiplies with K-quants by one kernel for few rows and by another one for many."""
    given = [
        "--exact",
        "--parallel",
        "4",
        "--context-length",
        "2048",
        "--threads",
        "1",
        "--port",
        str(free_port()),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "worker_orcd", "--model", str(find("gemma3")), *given],
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "--exact refused: the model has Q4_K weights (blk.0." in last
