"""The whole worker on a model of each kind of memory: stops, storms, deaths and disconnects (G1, G4, G6, G7, G15).

What is checked is what a broken memory breaks: every stream is whole, neighbours get all their tokens, nothing is held
afterwards, no audit finds a fault, and the engine is not restarted for any of it.
"""

import random
import signal
from collections.abc import Iterator

import pytest

from tests.helpers import at_rest, ended_state, fresh_id, in_prefill, receipt_of
from tests.models.matrix import CASES, Case
from tests.tiny import TinyModels
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker

TRIED = ("llama", "llama-moe", "deepseek2", "gemma3", "rwkv7", "falcon-h1")
IN_THE_NIGHT = ("llama", "llama-moe")
"""Llama is what `tests/real` tries; its mixtures of experts differ in nothing that a stop touches."""
KINDS = [
    pytest.param(case, marks=[pytest.mark.nightly] if case.name in IN_THE_NIGHT else [])
    for case in CASES
    if case.name in TRIED
]
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "reads", "long", "story")
NEIGHBOUR_TOKENS = 150


def some_text(number: int, words: int) -> str:
    """Text without sense, different for each number."""
    chance = random.Random(number)
    return " ".join(chance.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module", params=KINDS, ids=str)
def worker(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Iterator[RunningWorker]:
    """A worker on one model of the matrix."""
    case: Case = request.param
    path = tiny_models.path(case.name, **case.metadata)
    with running_worker(
        "llama", wait=False, model=path, parallel=6, context_length=8192, threads=1
    ) as worker:
        yield worker.ready(within_sec=120)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(worker: RunningWorker) -> Iterator[None]:
    """After each test nothing is held, no audit has found a fault, and the engine was restarted only as often as
    the test killed it."""
    restarts = worker.health()["engine_restarts"]
    yield
    at_rest(worker)
    assert worker.health()["kv_cells_used"] == 0
    assert "worker_audit_faults_total 0.0" in worker.client.get("/metrics").text
    deaths = [event for event in worker.narration() if event["action"] == "engine_lost"]
    assert worker.health()["engine_restarts"] == len(deaths) >= restarts


def neighbour(worker: RunningWorker, seed: int) -> Stream:
    """A job that generates for a while."""
    return worker.execute(
        fresh_id("neighbour"),
        some_text(seed, 20),
        template="none",
        ignore_eos=True,
        max_tokens=NEIGHBOUR_TOKENS,
        seed=seed,
    )


def long_prompt(worker: RunningWorker, number: int, words: int = 1200) -> Stream:
    """A job whose prompt takes several steps."""
    stream = worker.execute(fresh_id("long"), some_text(number, words), template="none", max_tokens=4)
    return stream.wait(lambda s: s.status == 200, what="an answer")


def assert_all_there(stream: Stream) -> None:
    """The stream ended naturally with all its tokens."""
    stream.finished().assert_whole()
    assert stream.events[-1].data.get("stop_reason") == "length", stream.events[-1]
    assert stream.events[-1].data["tokens_out"] == NEIGHBOUR_TOKENS


def test_a_job_stops_in_its_decode_and_in_its_prefill(worker: RunningWorker) -> None:
    """Computing ends, what the job held is free, and the neighbour loses nothing."""
    beside = neighbour(worker, 1).tokens_seen(2)
    decoding = neighbour(worker, 2).tokens_seen(3)
    worker.cancel(decoding.job_id)
    receipt = receipt_of(worker, decoding.job_id)
    assert (receipt["phase"], receipt["kv_cells_after"]) == ("decode", 0)
    assert receipt["kv_cells_before"] > 0
    prefilling = long_prompt(worker, 3)
    in_prefill(worker, prefilling)
    worker.cancel(prefilling.job_id)
    receipt = receipt_of(worker, prefilling.job_id)
    assert (receipt["phase"], receipt["kv_cells_after"]) == ("prefill", 0)
    record = worker.record(prefilling.job_id)
    assert 0 < record["prompt_tokens_processed"] < record["prompt_tokens"]
    for stream in (decoding, prefilling):
        stream.finished().assert_whole()
        assert stream.events[-1].data["code"] == "CANCELLED"
    assert_all_there(beside)


def test_neighbours_of_a_storm_of_cancels_get_all_their_tokens(worker: RunningWorker) -> None:
    """Prompts come and are cancelled at random moments for as long as the neighbours last."""
    chance = random.Random(4)
    beside = [neighbour(worker, seed) for seed in (10, 11, 12)]
    for stream in beside:
        stream.tokens_seen(1)
    victims = 0
    while any(stream.closed_at is None for stream in beside) and victims < 40:
        victim = long_prompt(worker, 100 + victims, words=chance.choice((20, 200, 800)))
        if chance.random() < 0.7:
            victim.started()
        worker.cancel(victim.job_id)
        victim.finished().assert_whole()
        victims += 1
    assert victims >= 3
    for stream in beside:
        assert_all_there(stream)


def test_jobs_continue_after_the_engine_was_killed(worker: RunningWorker) -> None:
    """One decodes, one is in its prefill; each gets the rest of its tokens from the next engine."""
    streams = [neighbour(worker, seed) for seed in (20, 21)]
    for stream in streams:
        stream.tokens_seen(3)
    waiting = long_prompt(worker, 22)
    in_prefill(worker, waiting)
    worker.signal_engine(signal.SIGKILL)
    for stream in streams:
        assert_all_there(stream)
    waiting.finished().assert_whole()
    assert waiting.events[-1].event == "end"


def test_a_job_whose_client_leaves_is_stopped_and_freed(worker: RunningWorker) -> None:
    """In its prefill and in its decode; the neighbour loses nothing."""
    beside = neighbour(worker, 30).tokens_seen(2)
    for stream in (long_prompt(worker, 31), neighbour(worker, 32).tokens_seen(2)):
        stream.leave()
        record = ended_state(worker, stream.job_id)
        assert record["state"] == "cancelled"
        receipt = receipt_of(worker, stream.job_id, "disconnect")
        assert receipt["kv_cells_after"] == 0
    assert_all_there(beside)
