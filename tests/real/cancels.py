"""Cancels beside streams of a real model: storms, and a steady rate for as long as the streams last."""

import random
import threading

from worker_orcd.engine.recovery import MAX_ABORTS_IN_A_ROW
from worker_orcd.testing.harness import RunningWorker, Stream, wait_until
from worker_orcd.testing.trials import HAIKU, long_prompt

CANCELLERS = 4
CANCEL_AFTER_SEC = 0.2
"""After a prompt of about 400 tokens was sent, which takes longer than that to compute on 2 cores."""
TRIALS = 100
"""Steady cancels, at least."""
GAINED = 20
"""Tokens that each stream beside them has to get."""


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


def assert_steps_are_done_beside_steady_cancels(worker: RunningWorker, neighbours: list[Stream]) -> None:
    """Cancel a prompt about every 50 ms, `TRIALS` times at least and until each neighbour has gained `GAINED` tokens.

    After `MAX_ABORTS_IN_A_ROW` aborted steps the next one is not aborted, whatever the load of the machine and however
    long a step takes there; mostly the first one is not. Without that the streams starve: 63 steps were done and 3,091
    aborted in five minutes.
    """
    for neighbour in neighbours:
        neighbour.tokens_seen(2, within_sec=120)
    before = steps(worker)
    seen = [len(neighbour.tokens) for neighbour in neighbours]
    over = threading.Event()
    victims = [0] * CANCELLERS

    def cancel_steadily(canceller: int) -> None:
        while not over.is_set():
            job_id = f"{neighbours[0].job_id}-{canceller}-victim-{victims[canceller]}"
            prompt = long_prompt(victims[canceller], 400)
            stream = worker.execute(job_id, prompt, template="none", max_tokens=50)
            over.wait(CANCEL_AFTER_SEC)
            worker.cancel(job_id)
            stream.finished()
            victims[canceller] += 1

    cancellers = [threading.Thread(target=cancel_steadily, args=(n,), daemon=True) for n in range(CANCELLERS)]
    for canceller in cancellers:
        canceller.start()
    try:
        for neighbour, tokens in zip(neighbours, seen, strict=True):
            neighbour.tokens_seen(tokens + GAINED, within_sec=300)
        wait_until(lambda: sum(victims) >= TRIALS, within_sec=300, what=f"{TRIALS} cancels")
        done, aborted = (after - b for after, b in zip(steps(worker), before, strict=True))
    finally:
        over.set()
        for canceller in cancellers:
            canceller.join(60)
        for neighbour in neighbours:
            worker.cancel(neighbour.job_id)
    for neighbour in neighbours:
        neighbour.finished().assert_whole()
    print(f"beside {sum(victims)} steady cancels: {done} steps done, {aborted} aborted")
    assert aborted > 0, "no step was aborted: nothing was tried"
    assert aborted <= MAX_ABORTS_IN_A_ROW * (done + 1)


def steps(worker: RunningWorker) -> tuple[int, int]:
    """Steps of the engine so far: done and aborted."""
    done, aborted = (
        metric(worker, f'worker_engine_steps_total{{outcome="{outcome}"}}') for outcome in ("done", "aborted")
    )
    return int(done), int(aborted)


def metric(worker: RunningWorker, series: str) -> float:
    """The value of one series of `/metrics`."""
    lines = worker.client.get("/metrics").text.splitlines()
    (value,) = (line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == series)
    return float(value)
