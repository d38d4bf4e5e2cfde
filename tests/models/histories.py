"""Random histories of runs, stops and aborted steps, and how far a run's logits are from those of the run alone."""

import random
from dataclasses import dataclass, field

import numpy as np

from tests.models.engine import Logits, TinyEngine, run_of, some_prompt
from worker_orcd.engine.model import AbortMode, Batch, Outcome
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import FromEngine, Step, Stop, Stopped

PROMPTS = (1, 3, 17, 40, 90)
LENGTHS = (1, 4, 12, 25)
UNDISTURBED = 200
"""How often the tokens of a run are computed again where one is far away."""
STEP_SIZES = (1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 33, 70)
"""Among them those of steps in which each run decodes: the number of rows decides how ggml sums."""
MAX_BEGINNING = 120
"""Tokens that a run has in common with an earlier one, at most."""
_MAX_TURNS = 20
"""Turns for each abort that is wanted, at most."""


@dataclass(slots=True)
class History:
    """Messages that an engine got, and how often a step was aborted."""

    runs: dict[int, Run] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    aborts: int = 0


def play(engine: TinyEngine, aborts: int, seed: int) -> History:
    """Start and stop runs, and interrupt steps at random moments, until this many steps were aborted.

    Raises:
        AssertionError: steps are not aborted.
    """
    chance = random.Random(seed)
    history = History()
    live: set[int] = set()
    step_sec = 0.01
    parallel = engine.model.facts.sequences
    for _ in range(aborts * _MAX_TURNS):
        if history.aborts >= aborts:
            break
        while len(live) < parallel and (chance.random() < 0.5 or not live):
            run = len(history.runs) + 1
            prompt = some_prompt(chance, chance.choice(PROMPTS), engine.model.facts.vocab_size)
            if history.runs and chance.random() < 0.6:
                prompt = _beginning(chance, engine, history) + prompt
            cache = chance.choice(["a", "a", "b", None])
            history.runs[run] = run_of(run, prompt, max_tokens=chance.choice(LENGTHS), cache=cache)
            live.add(run)
            engine.post(history.runs[run])
        if chance.random() < 0.1:
            stopped = chance.choice(sorted(live))
            history.stopped.add(stopped)
            engine.post(Stop(stopped))
        seen = len(engine.sent)
        aborted = engine.interrupted_turn(chance.random() * step_sec * 1.2)
        history.aborts += aborted
        live -= _gone(engine.sent[seen:])
        if not aborted and engine.steps:
            step_sec += 0.3 * (engine.steps[-1].duration_ms / 1000 - step_sec)
    assert history.aborts >= aborts, f"only {history.aborts} steps were aborted"
    engine.finish()
    return history


def _beginning(chance: random.Random, engine: TinyEngine, history: History) -> list[int]:
    """Tokens that an earlier run began with: a part of them, or all that it has computed so far."""
    earlier = history.runs[chance.choice(sorted(history.runs))]
    tokens = [*earlier.prompt, *engine.tokens(earlier.number)]
    return tokens[: chance.choice([len(tokens), chance.randint(1, len(tokens))])][:MAX_BEGINNING]


def _gone(messages: list[FromEngine]) -> set[int]:
    gone = {message.run for message in messages if isinstance(message, Stopped)}
    for step in messages:
        if isinstance(step, Step):
            gone |= {end.run for end in step.ended} | set(step.preempted)
    return gone


def check_whole(engine: TinyEngine, history: History) -> None:
    """Each run ended by itself with all its tokens, or was stopped; nothing is held; no audit found a fault."""
    assert engine.faults == []
    for number, run in history.runs.items():
        if number in history.stopped and engine.ends(number) == []:
            assert len(engine.tokens(number)) < run.max_tokens
        else:
            assert engine.ends(number) == ["length"], number
            assert len(engine.tokens(number)) == run.max_tokens
    assert all(said.cells_after == 0 for said in engine.stopped)
    assert engine.steps[-1].cells_used == 0


def compare(
    engine: TinyEngine, alone: TinyEngine, history: History, rounding: float
) -> tuple[list[float], set[int]]:
    """Compare the logits of each token with those of the same tokens computed at once, alone.

    The tokens of a run are computed again as they are, so one that differs does not hide what comes behind it. Near a
    tie, rounding chooses another expert and moves the logits farther than `rounding`, without any abort as well. So a
    token counts as wrong if none of several other undisturbed computations moves its logits that far.

    Returns:
        How far each token's logits are away, and the runs with a wrong one.
    """
    distances: list[float] = []
    wrong: set[int] = set()
    for number, run in history.runs.items():
        drawn = engine.model.drawn[number]
        if drawn:
            tokens = [*run.prompt, *engine.tokens(number)][: len(run.prompt) + len(drawn) - 1]
            wanted_from = len(run.prompt) - 1
            undisturbed = alone.model.alone(tokens, wanted_from)
            apart = list(map(distance, drawn, undisturbed))
            distances += apart
            far = {index for index, value in enumerate(apart) if value > rounding}
            chance = random.Random(number)
            for _ in range(UNDISTURBED if far else 0):
                rows = cut_at_random(alone, tokens, wanted_from, chance)
                far -= {index for index in far if distance(rows[index], undisturbed[index]) > rounding}
            if far:
                wrong.add(number)
    return distances, wrong


def compare_exactly(engine: TinyEngine, alone: TinyEngine, history: History) -> tuple[int, list[int]]:
    """Let each run have an engine to itself. Returns how many tokens were compared, and runs that differ in a bit."""
    compared, different = 0, []
    for number, run in history.runs.items():
        alone.post(run)
        alone.finish()
        pairs = zip(engine.model.drawn[number], alone.model.drawn[number], strict=False)
        same = [drawn.tobytes() == undisturbed.tobytes() for drawn, undisturbed in pairs]
        compared += len(same)
        if not all(same):
            different.append(number)
    return compared, different


def cut_at_random(
    alone: TinyEngine, tokens: list[int], wanted_from: int, chance: random.Random
) -> list[Logits]:
    """Logits behind each token from number `wanted_from` on, computed alone in steps of random sizes, without an abort.

    How far they are from those of one step is the rounding that no abort is to blame for.
    """
    rows: list[Logits] = []
    computed = 0
    while computed < len(tokens):
        size = min(chance.choice(STEP_SIZES), len(tokens) - computed)
        positions = range(computed, computed + size)
        wanted = [position >= wanted_from for position in positions]
        batch = Batch(tokens[computed : computed + size], list(positions), [0] * size, wanted)
        assert alone.model.decode(batch, abort_mode=AbortMode.NONE) is Outcome.DONE
        kept = [row for row in range(size) if wanted[row]]
        rows += [np.frombuffer(alone.model.logits(row), np.float32).copy() for row in kept]
        computed += size
    alone.model.trim(0, 0)
    return rows


def distance(drawn: Logits, undisturbed: Logits) -> float:
    """How far two rows of logits are apart, in units of how far the logits of one row are apart."""
    return float(np.sqrt(np.mean((drawn - undisturbed) ** 2)) / np.std(undisturbed))
