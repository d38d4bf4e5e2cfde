"""Stopping the real model, at random moments and in every phase (G1), without its neighbours noticing (G6, G12)."""

import itertools
import random
import statistics

import pytest

from worker_orcd.testing.harness import RunningWorker, Stream
from worker_orcd.testing.trials import (
    HAIKU,
    STORY,
    Begin,
    decoding,
    ending,
    first_token_ms,
    long_prompt,
    prefilling,
    starting,
    stop_trials,
)

STOPPED_WITHIN_MS = 100.0
"""The contract's bound. One trial in twenty may miss it: other tenants of a shared machine may take its cores."""


@pytest.mark.parametrize(
    ("begin", "trials"), [(decoding, 25), (prefilling, 15), (starting, 20), (ending, 20)]
)
def test_computing_stops_in_time(real_worker: RunningWorker, begin: Begin, trials: int) -> None:
    """Cancels at random moments of each phase: the distribution of the time until computing stopped."""
    receipts = stop_trials(real_worker, begin, trials)
    assert all(receipt["kv_cells_after"] == 0 for receipt in receipts)
    stopped = sorted(receipt["stopped_ms"] for receipt in receipts)
    print(
        f"{begin.__name__}: median {statistics.median(stopped):.1f} ms, largest {stopped[-1]:.1f} ms, n={len(stopped)}"
    )
    assert len(stopped) >= trials // 2 or begin is ending
    late = [ms for ms in stopped if ms > STOPPED_WITHIN_MS]
    # One in twenty may be the machine's fault, which is shared; not by much, and it is shown.
    assert len(late) <= trials // 20, late
    assert stopped[-1] < 5 * STOPPED_WITHIN_MS


def test_job_after_a_cancelled_long_prefill_starts_as_on_an_idle_worker(real_worker: RunningWorker) -> None:
    """Nothing of the cancelled prompt is computed any more when the next job comes (within 50 ms, by the median)."""
    first_token_ms(real_worker, "warm-up")
    later: list[float] = []
    for number in range(5):
        idle = first_token_ms(real_worker, f"idle-{number}")
        stream = prefilling(real_worker, f"blocker-{number}", random.Random(number))
        real_worker.cancel(stream.job_id)
        later.append(first_token_ms(real_worker, f"after-{number}") - idle)
        stream.finished()
    print("later by", [round(ms) for ms in later])
    assert statistics.median(later) <= 50


def test_neighbours_of_a_storm_of_cancels_lose_double_and_reorder_nothing(real_worker: RunningWorker) -> None:
    """Streams beside many cancelled prefills and decodes get every token they asked for, in order."""
    neighbours = [
        real_worker.execute(f"neighbour-{n}", STORY, ignore_eos=True, max_tokens=40, temperature=0.7, seed=n)
        for n in range(4)
    ]
    storm(real_worker, "storm", neighbours)
    for stream in neighbours:
        stream.finished().assert_whole()
        assert len(stream.tokens) == 40
        assert stream.terminal is not None
        assert stream.terminal.data == {
            "tokens_out": 40,
            "decode_time_ms": stream.terminal.data["decode_time_ms"],
            "stop_reason": "length",
        }


def test_long_prompt_does_not_stall_streams_that_decode(real_worker: RunningWorker) -> None:
    """The gap between tokens stays within three times the normal one while a long prompt is read (by medians)."""
    streams = [real_worker.execute(f"gap-{n}", STORY, ignore_eos=True, max_tokens=300) for n in range(4)]
    for stream in streams:
        stream.tokens_seen(15)
    arrival = real_worker.execute("arrival", long_prompt(1), template="none", max_tokens=1).started()
    began = arrival.events[0].at
    for stream in streams:
        stream.tokens_seen(len(stream.tokens) + 12)
    assert not arrival.tokens, "the prompt was read before anything could be seen"
    normal = statistics.median(gap for s in streams for gap in gaps(s, 0.0, began)[3:])
    beside = statistics.median(gap for s in streams for gap in gaps(s, began, float("inf")))
    for stream in [*streams, arrival]:
        real_worker.cancel(stream.job_id)
        stream.finished().assert_whole()
    print(
        f"gap: normal {normal * 1000:.1f} ms, beside a long prompt {beside * 1000:.1f} ms, x{beside / normal:.2f}"
    )
    assert beside <= 3.5 * normal  # Three is promised; the rest is for a machine that is shared.


def gaps(stream: Stream, begin: float, end: float) -> list[float]:
    """Seconds between the tokens of a stream that arrived in a time."""
    times = [token.at for token in stream.tokens if begin < token.at < end]
    return [b - a for a, b in itertools.pairwise(times)]


def storm(worker: RunningWorker, name: str, until_ended: list[Stream]) -> int:
    """Start and cancel jobs at random moments until the given streams have ended. Returns how many."""
    moments = random.Random(name)
    number = 0
    while any(stream.closed_at is None for stream in until_ended) and number < 40:
        job_id = f"{name}-{number}"
        if number % 2:
            stream = worker.execute(job_id, long_prompt(number, 400), template="none", max_tokens=50)
        else:
            stream = worker.execute(job_id, HAIKU, max_tokens=30, temperature=1.0)
        stream.events_seen(moments.randint(0, 4))
        worker.cancel(job_id)
        stream.finished().assert_whole()
        number += 1
    return number
