"""`cancel.feature`, on the scripted engine; what concerns a running job on the real model as well."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from pytest_bdd import given, parsers, scenario, then, when

from tests.helpers import at_rest, fresh_id, in_prefill, queued, script
from worker_orcd.testing.harness import EngineKind, RunningWorker, Stream, running_worker, wait_until
from worker_orcd.testing.trials import stopped_in_time

FEATURE = "cancel.feature"
STORY = "Write a long story..."

on_both_engines = pytest.mark.parametrize(
    "engine", ["scripted", pytest.param("llama", marks=pytest.mark.real)]
)


@dataclass
class Scene:
    """What the steps of one scenario hand on to each other."""

    worker: RunningWorker
    job: Stream | None = None
    others: list[Stream] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)
    answers: list[httpx2.Response] = field(default_factory=list)
    begin: Callable[[str], Stream] | None = None
    """Begins another job like the scenario's and brings it to where that was."""

    @property
    def stream(self) -> Stream:
        """The stream of the scenario's job."""
        assert self.job is not None
        return self.job


@pytest.fixture
def engine() -> EngineKind:
    """The engine, unless a scenario asks for more of them."""
    return "scripted"


@pytest.fixture
def prompts(engine: EngineKind) -> Callable[..., str]:
    """Make a prompt of so many tokens or more; the scripted engine takes as long over it as its script says."""

    def make(length: int = 0, **does: object) -> str:
        if engine == "scripted":
            return script(length, **does)
        return STORY if not length else "The quick brown fox jumps over the lazy dog. " * (length // 10)

    return make


@pytest.fixture
def scene(
    engine: EngineKind, another_worker: Callable[..., RunningWorker], request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """A worker at rest, before and after; a scenario's own worker is stopped after that."""
    worker = request.getfixturevalue("scripted_worker" if engine == "scripted" else "real_worker")
    at_rest(worker)
    scene = Scene(worker)
    yield scene
    for stream in [*scene.others, *([scene.job] if scene.job else [])]:
        scene.worker.cancel(stream.job_id)
        stream.finished()
    at_rest(scene.worker)


@pytest.fixture
def another_worker() -> Iterator[Callable[..., RunningWorker]]:
    """Start a worker for this scenario alone."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(running_worker(**how))


@on_both_engines
@scenario(FEATURE, "Cancel active inference job")
def test_cancel_active_inference_job(engine: EngineKind) -> None:
    """The story of the requirement."""


@scenario(FEATURE, "Cancel unknown job (idempotent)")
def test_cancel_unknown_job() -> None:
    """Nobody is hurt."""


@on_both_engines
@scenario(FEATURE, "Cancel already-completed job (idempotent)")
def test_cancel_already_completed_job(engine: EngineKind) -> None:
    """Nothing changes."""


@scenario(FEATURE, "Cancel during model loading")
def test_cancel_during_model_loading() -> None:
    """The model is not waited for."""


@scenario(FEATURE, "Cancel while queued")
def test_cancel_while_queued() -> None:
    """The engine never gets it."""


@on_both_engines
@scenario(FEATURE, "Cancel during a long prefill")
def test_cancel_during_a_long_prefill(engine: EngineKind) -> None:
    """The rest of the prompt is not read."""


@on_both_engines
@scenario(FEATURE, "Cancel before the first token")
def test_cancel_before_the_first_token(engine: EngineKind) -> None:
    """The job has hardly begun."""


@on_both_engines
@scenario(FEATURE, "Cancel on the last token")
def test_cancel_on_the_last_token(engine: EngineKind) -> None:
    """Whoever is first wins, and only one of them."""


@on_both_engines
@scenario(FEATURE, "Cancel after natural completion")
def test_cancel_after_natural_completion(engine: EngineKind) -> None:
    """What is decided stays."""


@scenario(FEATURE, "Cancel after a failure")
def test_cancel_after_a_failure() -> None:
    """What is decided stays."""


@on_both_engines
@scenario(FEATURE, "Many cancels at once for one job")
def test_many_cancels_at_once(engine: EngineKind) -> None:
    """As good as one."""


@scenario(FEATURE, "Cancel with an empty job_id")
def test_cancel_with_an_empty_job_id() -> None:
    """The client's mistake."""


@scenario(FEATURE, "Cancel with a malformed job_id")
def test_cancel_with_a_malformed_job_id() -> None:
    """The client's mistake."""


# Given


@given(parsers.parse('an active inference job with job_id "{job_id}"'))
def an_active_job(scene: Scene, prompts: Callable[..., str], job_id: str) -> None:
    """It generates tokens."""

    def begin(job_id: str) -> Stream:
        fields: dict[str, Any] = {"temperature": 0.7, "seed": 42, "ignore_eos": True}
        stream = scene.worker.execute(job_id, prompts(token_ms=10), max_tokens=1000, **fields)
        return stream.tokens_seen(3)

    scene.begin, scene.job = begin, begin(job_id)


@given(parsers.parse('no active job with job_id "{job_id}"'))
def no_active_job(scene: Scene, job_id: str) -> None:
    """The worker does not know it."""
    assert scene.worker.client.get(f"/jobs/{job_id}").status_code == 404


@given(parsers.parse('a completed job with job_id "{job_id}"'))
def a_completed_job(scene: Scene, prompts: Callable[..., str], job_id: str) -> None:
    """It came to its natural end."""
    scene.job = scene.worker.execute(job_id, prompts(), max_tokens=3, ignore_eos=True).finished()
    assert scene.job.events[-1].event == "end"
    scene.before = list(scene.job.events)


@given(parsers.parse('a failed job with job_id "{job_id}"'))
def a_failed_job(scene: Scene, job_id: str) -> None:
    """The engine failed on it."""
    scene.job = scene.worker.execute(job_id, script(fail_at=1)).finished()
    assert scene.job.events[-1].data["code"] == "INTERNAL"
    scene.before = list(scene.job.events)


@given(parsers.parse('a job with job_id "{job_id}" that waits for the model to load'))
def a_job_while_loading(scene: Scene, another_worker: Callable[..., RunningWorker], job_id: str) -> None:
    """The worker listens, its model is not there yet."""
    scene.worker = another_worker(wait=False, env={"WORKER_ORCD_SCRIPTED_LOAD_SEC": "1"})

    def listens() -> bool:
        try:
            return scene.worker.client.get("/livez").status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(listens, what="a worker that listens")
    scene.job = scene.worker.execute(job_id).wait(lambda s: s.status == 200, what="200")
    assert scene.worker.health()["status"] == "loading"


@given(parsers.parse('a job with job_id "{job_id}" that waits behind others'))
def a_queued_job(scene: Scene, job_id: str) -> None:
    """They hold so many cells that it does not fit beside them."""
    for _ in range(4):
        prompt = script(4000, token_ms=10)
        scene.others.append(scene.worker.execute(fresh_id("other"), prompt, max_tokens=2048).started())
    # Of 16,384 cells 128 are left, when 64 tokens of growth are counted for each.
    scene.job = queued(scene.worker, scene.worker.execute(job_id, script(300), max_tokens=2048))


@given(parsers.parse('a job with job_id "{job_id}" in the middle of reading a long prompt'))
def a_job_in_prefill(scene: Scene, prompts: Callable[..., str], job_id: str) -> None:
    """Some of its prompt is read, most is not."""

    def begin(job_id: str) -> Stream:
        stream = scene.worker.execute(job_id, prompts(2000, row_ms=1), max_tokens=10).started()
        in_prefill(scene.worker, stream)
        return stream

    scene.begin, scene.job = begin, begin(job_id)


@given(parsers.parse('a job with job_id "{job_id}" that has started and has no token yet'))
def a_job_before_its_first_token(scene: Scene, prompts: Callable[..., str], job_id: str) -> None:
    """Its prompt is long enough for that to last a moment."""

    def begin(job_id: str) -> Stream:
        stream = scene.worker.execute(job_id, prompts(400, row_ms=1), max_tokens=10).started()
        assert not stream.tokens
        return stream

    scene.begin, scene.job = begin, begin(job_id)


@given(parsers.parse('a job with job_id "{job_id}" that is about to generate its last token'))
def a_job_before_its_last_token(scene: Scene, prompts: Callable[..., str], job_id: str) -> None:
    """All but one of its tokens have come."""
    scene.job = scene.worker.execute(job_id, prompts(), max_tokens=8, ignore_eos=True).tokens_seen(7)


# When


@when(parsers.re(r"I POST to /cancel with (?P<body>\{.*\})$"))
def post_cancel(scene: Scene, body: str) -> None:
    """Just these bytes."""
    scene.answers.append(scene.worker.client.post("/cancel", content=body.encode()))


@when(parsers.re(r"(?P<clients>\d+) clients POST to /cancel with (?P<body>\{.*\}) at once"))
def post_many_cancels(scene: Scene, clients: str, body: str) -> None:
    """They wait for each other, then all ask."""
    together = threading.Barrier(int(clients))

    def ask(_: int) -> httpx2.Response:
        together.wait()
        return scene.worker.client.post("/cancel", content=body.encode())

    with ThreadPoolExecutor(int(clients)) as pool:
        scene.answers += pool.map(ask, range(int(clients)))


# Then


@then("I should receive 202 Accepted")
@then("all of them should receive 202 Accepted")
def accepted(scene: Scene) -> None:
    """With the one body there is."""
    assert scene.answers
    for answer in scene.answers:
        assert (answer.status_code, answer.reason_phrase) == (202, "Accepted")
        assert answer.json()["status"] == "cancelling"
        assert set(answer.json()) == {"status", "job_id"}


@then(parsers.parse('I should receive 400 Bad Request with code "{code}" for "{param}"'))
def refused(scene: Scene, code: str, param: str) -> None:
    """In the one shape of errors."""
    (answer,) = scene.answers
    assert (answer.status_code, answer.reason_phrase) == (400, "Bad Request")
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["retriable"]) == (code, param, False)


@then(parsers.parse('the SSE stream should receive error event with code "{code}"'))
def stream_received_error(scene: Scene, code: str) -> None:
    """As its one ending, and then it is closed."""
    scene.stream.finished(within_sec=5.0).assert_whole()
    last = scene.stream.events[-1]
    assert (last.event, last.data["code"], last.data["retriable"]) == ("error", code, False)
    assert last.data["message"] == "Job cancelled by client request"


@then("token generation should stop within 100ms")
def generation_stopped(scene: Scene) -> None:
    """By the receipt; and what the stream got is all there ever was. Judged with four more jobs that are stopped at
    the same point, as other tenants take the machine's cores now and then."""
    took_ms = [stopped_ms(scene.worker, scene.stream)]
    for _ in range(4):
        assert scene.begin is not None
        again = scene.begin(fresh_id("again"))
        scene.worker.cancel(again.job_id)
        took_ms.append(stopped_ms(scene.worker, again.finished(within_sec=5.0)))
    stopped_in_time("scenario", took_ms)


def stopped_ms(worker: RunningWorker, stream: Stream) -> float:
    """Milliseconds from the cancel's acceptance to the end of computing, of which tokens and cells know as well."""
    record = worker.record(stream.job_id)
    receipt: dict[str, Any] = record["receipt"]
    assert receipt["kv_cells_after"] == 0
    assert record["tokens_out"] == receipt["tokens_out"] == len(stream.tokens)
    stopped: float = receipt["stopped_ms"]
    assert stopped <= 500
    return stopped


@then(parsers.parse('the job should have been in phase "{phase}"'))
def was_in_phase(scene: Scene, phase: str) -> None:
    """Stream and receipt agree."""
    assert scene.stream.events[-1].data["phase"] == phase
    assert scene.worker.record(scene.stream.job_id)["receipt"]["phase"] == phase


@then("the SSE stream should have exactly one ending")
def one_ending(scene: Scene) -> None:
    """Its natural end or CANCELLED; the record agrees."""
    scene.stream.finished(within_sec=5.0).assert_whole()
    state = scene.worker.record(scene.stream.job_id)["state"]
    assert state == ("completed" if scene.stream.events[-1].event == "end" else "cancelled")


@then(parsers.parse('the job should still be "{state}"'))
def is_still(scene: Scene, state: str) -> None:
    """What was decided is not reversed, and the stream has got nothing more."""
    record = scene.worker.record(scene.stream.job_id)
    assert (record["state"], record["receipt"]) == (state, None)
    assert scene.stream.events == scene.before


@then("the job should go on")
def goes_on(scene: Scene) -> None:
    """Tokens keep coming."""
    scene.stream.tokens_seen(len(scene.stream.tokens) + 3)


@then("the others should go on")
def others_continue(scene: Scene) -> None:
    """They did not notice."""
    for other in scene.others:
        other.tokens_seen(len(other.tokens) + 3)


@then("no error should occur")
def no_error(scene: Scene) -> None:
    """Neither in the answer, nor in any narration since, nor in the worker's health."""
    for answer in scene.answers:
        assert "error" not in answer.json()
        correlation = answer.headers["x-correlation-id"]
        scene.worker.narrated("cancel", correlation_id=correlation, level="WARN")
        reported = [event for event in scene.worker.narration() if event.get("correlation_id") == correlation]
        assert [event["action"] for event in reported] == ["cancel"]
    assert scene.worker.health()["status"] == "healthy"
