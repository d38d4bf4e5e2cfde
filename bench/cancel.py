"""How fast a cancel is, and what the way to it costs.

    python bench/cancel.py [--trials N] [--quick]

Prints, for the bundled model on this machine:

1. For each phase, the distribution over many trials of the time from a cancel's acceptance until computing stopped,
   memory was free, and the reader was told (milliseconds, from the worker's receipts).
2. How soon the next job's first token comes after a cancelled 2,000-token prefill, beside an idle worker's.
3. Decode and prefill throughput of the worker, its clients included, beside a bare loop over the same llama.cpp calls
   (sampling included) in a process of its own: A and B in turns, as ratios.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

SENTENCE = "The keeper of lighthouse {n} wrote down the wind, the height of the waves and every ship that passed by. "
LONG_PROMPT = "".join(SENTENCE.format(n=n) for n in range(95))
"""About 2,000 tokens."""
STORY = "Write a long story about a lighthouse keeper."
DECODED = 96
"""Tokens of each stream in a throughput run."""


def long_prompt(trial: int) -> str:
    """A long prompt that differs from the others."""
    return f"{trial}. {LONG_PROMPT}"


# Cancels.


def in_decode(worker: RunningWorker, job_id: str, trial: random.Random) -> Stream:
    """A job somewhere in its decode."""
    stream = worker.execute(job_id, STORY, ignore_eos=True, max_tokens=400)
    return stream.tokens_seen(trial.randint(1, 12))


def in_prefill(worker: RunningWorker, job_id: str, trial: random.Random) -> Stream:
    """A job somewhere in the reading of its prompt."""
    stream = worker.execute(
        job_id, long_prompt(trial.randint(0, 10**6)), template="none", max_tokens=50
    ).started()
    depth = trial.randint(1, 1500)
    wait_until(
        lambda: worker.record(job_id)["prompt_tokens_processed"] >= depth, within_sec=120, what="prefill"
    )
    return stream


def at_first_token(worker: RunningWorker, job_id: str, _trial: random.Random) -> Stream:
    """A job that has just been handed to the engine."""
    return worker.execute(job_id, STORY, max_tokens=50).started()


def at_last_token(worker: RunningWorker, job_id: str, _trial: random.Random) -> Stream:
    """A job with one token to go."""
    return worker.execute(job_id, STORY, ignore_eos=True, max_tokens=6).tokens_seen(5)


def cancel_trials(
    worker: RunningWorker, name: str, begin: Callable[..., Stream], trials: int
) -> list[dict[str, float]]:
    """Receipts of jobs cancelled at random moments."""
    receipts = []
    for number in range(trials):
        trial = random.Random(number)
        job_id = f"{name}-{number}"
        stream = begin(worker, job_id, trial)
        pause(trial.random() * 0.03)
        worker.cancel(job_id)
        stream.finished()
        receipt = worker.record(job_id)["receipt"]
        if receipt is not None:
            receipts.append(receipt)
    return receipts


def pause(seconds: float) -> None:
    """A random moment inside a step, not a wait for something."""
    time.sleep(seconds)


def beside(worker: RunningWorker, name: str, streams: int, begin: Callable[..., Stream], trials: int) -> None:
    """Cancel trials while so many other streams decode."""
    others = [
        worker.execute(f"{name}-other-{n}", STORY, ignore_eos=True, max_tokens=900, temperature=0.7)
        for n in range(streams)
    ]
    for other in others:
        other.tokens_seen(2)
    report(f"{name}, beside {streams}", cancel_trials(worker, name, begin, trials))
    for other in others:
        worker.cancel(other.job_id)
    for other in others:
        other.finished()


def report(name: str, receipts: list[dict[str, float]]) -> None:
    """One row for each stage."""
    for stage in ("stopped_ms", "freed_ms", "told_ms"):
        values = sorted(receipt[stage] for receipt in receipts)
        figures = "  ".join(f"{label} {value:7.2f}" for label, value in quantiles(values))
        print(f"  {name:28s} {stage:10s} n={len(values):4d}  {figures}", flush=True)


def quantiles(values: list[float]) -> Iterable[tuple[str, float]]:
    """p50, p90, p99 and the largest."""
    for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        yield label, values[min(len(values) - 1, int(len(values) * share))]


# The next job's first token.


def first_token_ms(worker: RunningWorker, job_id: str) -> float:
    """Milliseconds from sending a short job to its first token."""
    stream = worker.execute(job_id, "Hello", max_tokens=1).tokens_seen(1)
    stream.finished()
    return (stream.tokens[0].at - stream.sent_at) * 1000


def next_job(worker: RunningWorker, trials: int) -> None:
    """After a cancelled long prefill, beside idle, in turns."""
    idle, after = [], []
    for number in range(trials):
        idle.append(first_token_ms(worker, f"idle-{number}"))
        stream = in_prefill(worker, f"long-{number}", random.Random(number))
        worker.cancel(stream.job_id)
        after.append(first_token_ms(worker, f"after-{number}"))
        stream.finished()
    difference = [b - a for a, b in zip(idle, after, strict=True)]
    print(
        f"  first token on an idle worker: median {statistics.median(idle):.1f} ms; "
        f"next to a cancelled 2,000-token prefill: median {statistics.median(after):.1f} ms; "
        f"difference: median {statistics.median(difference):.1f} ms, max {max(difference):.1f} ms (n={trials})",
        flush=True,
    )


# Throughput.


def worker_decode(worker: RunningWorker, streams: int, round_number: int) -> float:
    """Tokens per second of so many streams together, from the last one's first token to the first one's last."""
    running = [
        worker.execute(
            f"t-{streams}-{round_number}-{n}",
            STORY,
            ignore_eos=True,
            max_tokens=DECODED,
            temperature=0.7,
            top_k=40,
            seed=n,
        )
        for n in range(streams)
    ]
    for stream in running:
        stream.finished()
    begin = max(stream.tokens[0].at for stream in running)
    end = min(stream.tokens[-1].at for stream in running)
    return sum(begin < token.at <= end for stream in running for token in stream.tokens) / (end - begin)


def worker_prefill(worker: RunningWorker, round_number: int) -> float:
    """Prompt tokens per second of one long prompt, from sending to its first token."""
    job_id = f"p-{round_number}"
    stream = worker.execute(job_id, long_prompt(round_number), template="none", max_tokens=1).finished()
    return float(worker.record(job_id)["prompt_tokens"]) / (stream.tokens[0].at - stream.sent_at)


def bare(*arguments: object) -> float:
    """The same in a process of its own, without a worker."""
    command = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(
    name: str, worker_rate: Callable[[int], float], bare_rate: Callable[[], float], rounds: int
) -> None:
    """Worker and bare loop in turns; the ratio of each pair."""
    pairs = [(worker_rate(number), bare_rate()) for number in range(rounds)]
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    print(
        f"  {name:22s} worker {statistics.median(p[0] for p in pairs):7.1f} tokens/s   "
        f"bare loop {statistics.median(p[1] for p in pairs):7.1f} tokens/s   "
        f"ratio median {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f}, n={rounds})",
        flush=True,
    )


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100, help="cancels for each phase")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of throughput runs")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it works")
    parser.add_argument("--exact", action="store_true", help="with --exact")
    given = parser.parse_args()
    trials = max(3, given.trials // 10) if given.quick else given.trials
    rounds = 1 if given.quick else given.rounds
    options = {"exact": True, "context_length": 65536} if given.exact else {}
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    with running_worker("llama", **options) as worker:
        first_token_ms(worker, "warm-up")
        print("accepted → stopped → freed → told, ms")
        report("decode, alone", cancel_trials(worker, "decode", in_decode, trials))
        beside(worker, "decode", 4, in_decode, trials // 2)
        report("prefill, alone", cancel_trials(worker, "prefill", in_prefill, trials))
        beside(worker, "prefill", 4, in_prefill, max(2, trials // 4))
        report("before the first token", cancel_trials(worker, "first", at_first_token, trials))
        report("last token", cancel_trials(worker, "last", at_last_token, trials))
        print("after a cancelled prefill")
        next_job(worker, max(3, trials // 5))
        print("throughput beside a bare loop")
        exact = int(given.exact)
        for streams in (1, 4, 16):
            compare(
                f"decode, {streams} streams",
                lambda number, streams=streams: worker_decode(worker, streams, number),  # type: ignore[misc]
                lambda streams=streams: bare("decode", streams, DECODED, exact),  # type: ignore[misc]
                rounds,
            )
        compare(
            "prefill, 2,000 tokens",
            lambda number: worker_prefill(worker, number),
            lambda: bare("prefill", exact),
            rounds,
        )


if __name__ == "__main__":
    main()
