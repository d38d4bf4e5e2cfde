"""`--exact` beside storms of aborts and stops: many streams, each compared bit for bit with the same job alone (G6).

The engine's loop runs in this process, and its steps are interrupted at random moments. Compared is every row of scores
that a token is drawn from, which shows a difference long before the text does.

`EXACT_STREAMS` is the number of streams of a tiny model, whose steps take milliseconds; the bundled model gets a
hundredth of it. `make exact` takes 3,000: a fault that changes one stream in a thousand is then found with a
probability of 95 % (1 - 0.999³⁰⁰⁰). The default is a sample that mostly finds faults as large as the one that
`engine/parts.py` avoids (docs/reliability.md); `test_search_heads.py` always finds that one.
"""

import os
import random
from hashlib import blake2b

import numpy as np
import pytest

from tests.models.engine import TinyEngine, run_of, some_prompt
from tests.tiny import TinyModels
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import Stop
from worker_orcd.sampling import SamplingParams
from worker_orcd.settings import bundled_model

pytestmark = pytest.mark.real

EXACT_STREAMS = int(os.environ.get("EXACT_STREAMS", "60"))
SEED = int(os.environ.get("EXACT_SEED", "0"))
"""Of the storm. Another one tries other moments."""
THREADS = 1
"""More of them wait for each other, for long on a busy machine, and change nothing that is compared."""
TOGETHER = 6
"""Streams that are compared and run at the same time; the other sequences are for jobs that are stopped."""
SEQUENCES = 11
LENGTHS = (5, 40, 100)
"""Of prompts that run at the same time and differ by a token or two: streams whose cells end at nearly the same place
are the most likely to be harmed by each other's search heads. A fourth set mixes all lengths."""
JOBS = TOGETHER * (len(LENGTHS) + 1)
TOKENS = 40
VICTIM = 10**6
"""Runs from this number on are there to be stopped."""


def job(number: int, vocabulary: int) -> Run:
    """One of the jobs, all different: greedy and sampled, short prompts and long ones."""
    chance = random.Random(number)
    similar, member = divmod(number, TOGETHER)
    rows = LENGTHS[similar] + member // 2 if similar < len(LENGTHS) else (5, 20, 60, 120, 200, 300)[member]
    sampling = SamplingParams(
        temperature=(0.0, 0.7, 1.0)[number % 3],
        repetition_penalty=(1.0, 1.2)[number % 2],
        seed=number,
        ignore_eos=True,
    )
    return run_of(number, some_prompt(chance, rows, vocabulary), max_tokens=TOKENS, sampling=sampling)


class Storm:
    """An engine whose steps are interrupted again and again, beside jobs that come and are stopped."""

    def __init__(self, engine: TinyEngine, chance: random.Random) -> None:
        self.aborted = 0
        self.stopped = 0
        self._engine = engine
        self._chance = chance
        self._victims: list[int] = []
        self._last = VICTIM

    def turn(self) -> set[int]:
        """One step, mostly an interrupted one; before it now and then a job comes or is stopped. Which runs ended."""
        if len(self._victims) < SEQUENCES - TOGETHER and self._chance.random() < 0.6:
            self._last += 1
            self._engine.post(
                run_of(self._last, self._prompt(self._chance.randrange(10, 600)), max_tokens=60)
            )
            self._victims.append(self._last)
        elif self._victims and self._chance.random() < 0.2:
            self._stop(self._victims[self._chance.randrange(len(self._victims))])
        if self._chance.random() < 0.6:
            after_ms = self._chance.random() * self._engine.loop.next_ms
            self.aborted += self._engine.interrupted_turn(after_ms / 1000)
        else:
            self._engine.loop.turn()
        ended = {end.run for step in self._engine.steps for end in step.ended}
        self._engine.sent.clear()
        for victim in ended.intersection(self._victims):
            self._forget(victim)
        return ended

    def _prompt(self, rows: int) -> list[int]:
        return some_prompt(self._chance, rows, self._engine.model.facts.vocab_size)

    def _stop(self, victim: int) -> None:
        self._engine.post(Stop(victim))
        self._forget(victim)
        self.stopped += 1

    def _forget(self, victim: int) -> None:
        self._victims.remove(victim)
        self._engine.model.drawn.pop(victim, None)


def digest(engine: TinyEngine, run: int) -> bytes:
    """A digest of all rows that a run's tokens were drawn from, one for each token."""
    rows = engine.model.drawn.pop(run)
    assert len(rows) == TOKENS
    return blake2b(np.stack(rows).tobytes()).digest()


@pytest.mark.timeout(max(300, 5 * EXACT_STREAMS))
@pytest.mark.parametrize("name", ["llama", "bundled"])
def test_streams_in_a_storm_are_bitwise_those_of_the_same_jobs_alone(
    tiny_models: TinyModels, name: str
) -> None:
    """Whatever is aborted and stopped beside them, not one bit of what they are drawn from differs."""
    path = bundled_model() if name == "bundled" else tiny_models.path(name)
    streams = max(TOGETHER, EXACT_STREAMS // 100) if name == "bundled" else EXACT_STREAMS
    engine = TinyEngine(path, exact=True, parallel=SEQUENCES, cells=1024 * SEQUENCES, threads=THREADS)
    try:
        compare(engine, streams)
    finally:
        engine.close()


def compare(engine: TinyEngine, streams: int) -> None:
    """Have so many streams computed in a storm, and compare them with the same jobs alone."""
    vocabulary = engine.model.facts.vocab_size
    alone: list[bytes] = []
    for number in range(min(JOBS, streams)):
        engine.post(job(number, vocabulary))
        engine.finish()
        alone.append(digest(engine, number))
    engine.sent.clear()
    storm = Storm(engine, random.Random(SEED))
    begun = compared = 0
    live: set[int] = set()
    differing: list[int] = []
    while compared < streams:
        next_one = begun % len(alone)
        if begun < streams and len(live) < TOGETHER and next_one not in live:
            engine.post(job(next_one, vocabulary))
            live.add(next_one)
            begun += 1
        for number in storm.turn() & live:
            live.remove(number)
            compared += 1
            if digest(engine, number) != alone[number]:
                differing.append(number)
            if compared % 300 == 0:
                print(
                    f"{compared} streams, {storm.aborted} aborted steps: {len(differing)} differ", flush=True
                )
    print(
        f"{compared} streams of {TOKENS} tokens, {storm.aborted} aborted steps, {storm.stopped} jobs stopped: "
        f"{len(differing)} streams differ"
    )
    assert storm.aborted >= streams
    assert not differing, f"{len(differing)} of {compared} streams differ: jobs {differing}"
