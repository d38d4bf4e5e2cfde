"""Jobs of the bundled model in different phases: decode, a long prefill, the first or the last token.

For trials of stops, which begin a job, wait a random time and cancel it.
"""

import random
import secrets
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from worker_orcd.testing.harness import RunningWorker, Stream, wait_until

HAIKU = "Write a haiku about the sea."
STORY = "Write a long story about a lighthouse keeper."

Begin = Callable[[RunningWorker, str, random.Random], Stream]
"""Starts the job with this id, and returns its stream once it is in the phase of the function's name."""
IN_TIME = 0.95
"""The share of stops that must be in time. Below 1, because a shared machine's cores are busy now and then."""
FAR_TOO_LATE = 5
"""No stop may take this many times the bound."""


def long_prompt(number: int, tokens: int = 2000) -> str:
    """About this many tokens of raw text, different for each number."""
    ships = random.Random(number)
    sentence = (
        "On day {n} the keeper wrote down the wind, the height of the waves and {m} ships that passed by. "
    )
    return "".join(sentence.format(n=n, m=ships.randint(2, 99)) for n in range(tokens // 23))


def decoding(worker: RunningWorker, job_id: str, moment: random.Random) -> Stream:
    """A job in its decode."""
    stream = worker.execute(job_id, STORY, ignore_eos=True, max_tokens=200)
    return stream.tokens_seen(moment.randint(1, 6))


def prefilling(worker: RunningWorker, job_id: str, moment: random.Random) -> Stream:
    """A job in the first part of the prefill of a 2,000-token prompt."""
    return _reading(worker, job_id, _new_prompt(2000), moment.randint(1, 300))


def prefilling_deep(worker: RunningWorker, job_id: str, moment: random.Random) -> Stream:
    """A job in the prefill of a prompt near the limit of the context: more than 5,000 tokens are in cells."""
    return _reading(worker, job_id, _new_prompt(7000), moment.randint(5000, 5500))


def _new_prompt(tokens: int) -> str:
    """A prompt of which no worker has a computed prefix."""
    return f"{secrets.token_hex(4)}: {long_prompt(0, tokens)}"


def _reading(worker: RunningWorker, job_id: str, prompt: str, depth: int) -> Stream:
    stream = worker.execute(job_id, prompt, template="none", max_tokens=20).started(within_sec=90)
    wait_until(
        lambda: worker.record(job_id)["prompt_tokens_processed"] >= depth, within_sec=240, what="prefill"
    )
    return stream


def starting(worker: RunningWorker, job_id: str, _moment: random.Random) -> Stream:
    """A job that has just been started in the engine."""
    return worker.execute(job_id, HAIKU, max_tokens=20, cache_prompt=False).started()


def ending(worker: RunningWorker, job_id: str, _moment: random.Random) -> Stream:
    """A job before its last token."""
    return worker.execute(job_id, HAIKU, max_tokens=4, ignore_eos=True).tokens_seen(3)


def stop_trials(
    worker: RunningWorker,
    begin: Begin,
    trials: int,
    name: str = "",
    pause: Callable[[float], Any] | None = None,
    on_terminal: Callable[[], Any] | None = None,
) -> list[dict[str, Any]]:
    """Cancel `trials` jobs, each at a random moment, and return the receipts of the stopped ones.

    A job that ended before its cancel has no receipt. Checks that every stream is complete.

    Args:
        pause: waits this many seconds, to hit a random moment inside a step; None: cancel at once.
        on_terminal: called as soon as a job's terminal event arrives.
    """
    receipts = []
    for number in range(trials):
        moment = random.Random(number)
        job_id = f"{name or begin.__name__}-{number}"
        stream = begin(worker, job_id, moment)
        if pause is not None:
            pause(moment.random() * _STEP_SEC.get(begin, 0.03))
        answer = worker.cancel(job_id)
        assert (answer.status_code, answer.json()) == (202, {"status": "cancelling", "job_id": job_id})
        stream.wait(lambda s: s.terminal is not None, what="the terminal event")
        if on_terminal is not None:
            on_terminal()
        stream.finished().assert_whole()
        receipt = worker.record(job_id)["receipt"]
        if receipt is not None:
            receipts.append(receipt)
    return receipts


_STEP_SEC: dict[Begin, float] = {prefilling: 0.4, prefilling_deep: 0.4, starting: 0.1, ending: 0.01}
"""About as long as a step of a prefill; a step that decodes one token is shorter."""


def stopped_in_time(what: str, stopped_ms: Sequence[float], bound_ms: float = 100.0) -> None:
    """Print how long stops took, and check them against the guaranteed bound.

    Half of them must be well below the bound, 95 of 100 within it, and none may take five times as long. If stops
    waited for the end of their step or for a timer, or were sometimes lost, one of the three would fail. The times on a
    quiet machine (20 ms for 99 of 100, never over 100 ms) are measured by `bench/cancel.py`, in hundreds of trials.

    Raises:
        AssertionError: the stops took too long.
    """
    assert stopped_ms, f"{what}: nothing was stopped"
    ordered = sorted(stopped_ms)
    half, most = statistics.median(ordered), ordered[int(IN_TIME * (len(ordered) - 1))]
    figures = (
        f"{what}: n={len(ordered)}, median {half:.1f} ms, p95 {most:.1f} ms, largest {ordered[-1]:.1f} ms"
    )
    print(figures)
    assert half <= bound_ms / 3, f"{figures}: {ordered}"
    assert most <= bound_ms, f"{figures}: {ordered}"
    assert ordered[-1] <= FAR_TOO_LATE * bound_ms, f"{figures}: {ordered}"


def first_token_ms(worker: RunningWorker, job_id: str) -> float:
    """Milliseconds from sending a short job to its first token."""
    stream = worker.execute(job_id, "Hello", max_tokens=1, template="none").finished()
    return (stream.tokens[0].at - stream.sent_at) * 1000
