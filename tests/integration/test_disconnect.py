"""A job whose reader disconnects is stopped within 100 ms after the socket closes, in any state (contract, 4)."""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from fastapi import Response
from fastapi.sse import KEEPALIVE_COMMENT
from starlette.types import Message

from tests.fakes import at, freed_at, running_job
from tests.helpers import (
    TRIALS,
    assert_prompt,
    ended_state,
    fresh_id,
    in_a_first_step,
    leave_and_measure,
    queued,
    script,
)
from worker_orcd.api import sse
from worker_orcd.api.connection import BoundedProtocol
from worker_orcd.api.connections import Connections
from worker_orcd.api.openai import responses
from worker_orcd.api.openai.response_bodies import Completion, stream as reported_stream
from worker_orcd.api.openai.response_events import ResponseEvents
from worker_orcd.api.openai.response_object import ResponseObject
from worker_orcd.api.openai.response_request import ResponseJob, ResponseRequest
from worker_orcd.api.server import Server, bind
from worker_orcd.jobs.job import Job
from worker_orcd.testing.harness import RunningWorker, wait_until
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.streams import JobStream, KeepAlive


def test_leaving_during_decode_stops_the_job(worker: RunningWorker) -> None:
    """The client disconnects while tokens arrive."""
    took_ms = []
    for _ in range(TRIALS):
        stream = worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(2)
        took_ms.append(leave_and_measure(worker, stream, "decode"))
    assert_prompt(took_ms)
    assert worker.health()["kv_cells_used"] == 0


def test_a_lost_reader_is_narrated(worker: RunningWorker) -> None:
    """`disconnect`, with the phase and the job's own correlation id."""
    stream = worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(2)
    stream.leave()
    reported = worker.narrated("disconnect", job_id=stream.job_id)
    assert (reported["phase"], reported["on_disconnect"]) == ("decode", "cancel")
    assert reported["correlation_id"] == stream.headers["x-correlation-id"]


def test_leaving_during_prefill_stops_the_job(worker: RunningWorker) -> None:
    """The client disconnects during prefill, when nothing is written."""
    took_ms = []
    for _ in range(TRIALS):
        stream = in_a_first_step(worker.execute(fresh_id(), script(1500, row_ms=1)).started())
        took_ms.append(leave_and_measure(worker, stream, "prefill"))
    assert_prompt(took_ms)


def test_leaving_the_queue_gives_the_place_back(narrow: RunningWorker) -> None:
    """A disconnect is noticed before the first byte of the answer; the running job is unaffected."""
    running = narrow.execute(fresh_id("running"), script(token_ms=5)).started()
    took_ms = []
    for _ in range(TRIALS):
        stream = queued(narrow, narrow.execute(fresh_id()))
        took_ms.append(leave_and_measure(narrow, stream, "queued"))
    assert_prompt(took_ms)
    assert narrow.health()["jobs_queued"] == 0
    assert not running.terminal
    narrow.cancel(running.job_id)
    running.finished().assert_whole()


def test_leaving_an_idle_stream_in_the_middle_of_a_long_step_stops_the_job(worker: RunningWorker) -> None:
    """The stream is idle and the engine is in a step of 200 ms: the stop waits for neither."""
    worker.execute(fresh_id("teaches-the-planner"), script(token_ms=100), max_tokens=4).finished()
    took_ms = []
    for _ in range(TRIALS):
        stream = worker.execute(fresh_id(), script(token_ms=200)).tokens_seen(1)
        took_ms.append(leave_and_measure(worker, stream, "decode"))
    assert_prompt(took_ms)


def test_a_client_that_never_reads_its_answer_is_noticed(worker: RunningWorker) -> None:
    """A client that disconnects right after its request leaves no job behind."""
    job_ids = [fresh_id("hasty") for _ in range(10)]
    for job_id in job_ids:
        body = json.dumps({"job_id": job_id, "prompt": script(token_ms=20)}).encode()
        head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", worker.port)) as connection:
            connection.sendall(head.encode() + body)
            # Until the worker has it: before that there is nothing to leave.
            _wait_for_job(worker, job_id)
    for job_id in job_ids:
        record = ended_state(worker, job_id)
        assert record["state"] == "cancelled"
        assert cast(dict[str, Any], record["receipt"])["reason"] == "disconnect"


def _wait_for_job(worker: RunningWorker, job_id: str) -> None:
    """Wait until the worker knows a job."""
    wait_until(lambda: worker.client.get(f"/jobs/{job_id}").status_code == 200, what=job_id)


def test_a_reader_who_leaves_after_the_end_changes_nothing(worker: RunningWorker) -> None:
    """The job is completed and stays so."""
    stream = worker.execute(fresh_id(), max_tokens=2)
    stream.wait(lambda s: s.terminal is not None, what="the end")
    stream.leave()
    assert ended_state(worker, stream.job_id)["state"] == "completed"
    stream.finished()


@pytest.mark.parametrize("ahead", [1, 100, 3000])
def test_a_client_that_leaves_is_noticed_also_when_it_has_sent_further_requests(
    worker: RunningWorker, ahead: int
) -> None:
    """With few pipelined requests the worker keeps reading; with too many it drops the client."""
    job_id = fresh_id("pipelined")
    body = json.dumps({"job_id": job_id, "prompt": script(4000, row_ms=5), "max_tokens": 5}).encode()
    head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    more = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", worker.port)) as client:
        client.sendall(head + body + more)
        wait_until(lambda: worker.record(job_id).get("prompt_tokens_processed"), what="prefill")
        with contextlib.suppress(OSError):
            client.sendall(more * (ahead - 1))
    left_at = time.monotonic()
    record = ended_state(worker, job_id)
    assert time.monotonic() - left_at < 2.0
    assert cast(dict[str, Any], record["receipt"])["reason"] == "disconnect"


def test_another_readers_leaving_does_not_stop_the_job_of_a_client_that_waits_for_its_answer(
    battered: RunningWorker,
) -> None:
    """A client counts as a reader from its job's acceptance, not from the first byte of the answer."""
    battered.signal_engine(signal.SIGSTOP)
    stream = battered.execute(fresh_id(), script(token_ms=2), max_tokens=5)
    path = f"/jobs/{stream.job_id}"
    wait_until(lambda: battered.client.get(path).status_code == 200, what="the job")
    with battered.client.stream("GET", f"{path}/events") as other:
        assert other.status_code == 200
    assert stream.status is None, "it still waits for its answer"
    battered.signal_engine(signal.SIGCONT)
    assert stream.finished(within_sec=40).events[-1].event == "end"


def test_a_cancel_before_the_reader_leaves_keeps_its_reason(worker: RunningWorker) -> None:
    """The first stop request decides: the record says `client`, although the reader is gone as well."""
    stream = worker.execute(fresh_id(), script(token_ms=5)).tokens_seen(1)
    worker.cancel(stream.job_id)
    stream.leave()
    record = ended_state(worker, stream.job_id)
    assert cast(dict[str, Any], record["receipt"])["reason"] == "client"
    stream.finished()


def test_who_joins_a_live_job_gets_its_end_also_when_that_comes_before_the_first_look() -> None:
    """Whether the reader gets the end is decided when the reader connects."""

    async def follow() -> list[int]:
        job = running_job()
        reading = JobStream(job).read(KeepAlive(1.0), start=2)
        job.finished(at(3), "stop", freed_at(3))
        return [number async for batch in reading for number, _ in batch]

    assert asyncio.run(follow()) == [1]


def completion_of(stream: JobStream) -> sse.ReaderResponse:
    """A job as a stream of `/v1/completions`."""
    reported = Completion("cmpl-1", "a-model", 0, 1, include_usage=False)
    return sse.ReaderResponse(
        cast(WorkerInterface, None), [stream], partial(reported_stream, reported, [stream])
    )


def response_of(stream: JobStream) -> sse.ReaderResponse:
    """A job as a stream of `/v1/responses`."""
    asked = ResponseRequest(input="Say something.")
    stream.job.request = ResponseJob(**stream.job.request.model_dump(), asked=asked, named_by_client=False)
    events = ResponseEvents(ResponseObject(stream.job, "a-model", tuple))
    return sse.ReaderResponse(
        cast(WorkerInterface, None), [stream], partial(responses._frames, stream, events)
    )


def own_of(stream: JobStream) -> sse.ReaderResponse:
    """A job as its own stream."""
    return sse.JobStreamResponse(cast(WorkerInterface, None), stream)


def own_from_a_later_event_of(stream: JobStream) -> sse.ReaderResponse:
    """The same for a reader that has seen more than there is yet."""
    return sse.JobStreamResponse(cast(WorkerInterface, None), stream, start=1000)


@pytest.mark.parametrize(
    ("answer", "talks"),
    [
        (own_of, False),  # Of its tokens each is an event, and so bytes.
        (own_from_a_later_event_of, True),
        (completion_of, False),
        (completion_of, True),
        (response_of, False),
        (response_of, True),
    ],
)
def test_comments_keep_a_stream_alive_whatever_its_jobs_do(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[JobStream], sse.ReaderResponse], talks: bool
) -> None:
    """What keeps the proxies on the way from hanging up is bytes, every 15 s by the contract. Tokens that show
    nothing, because their text is held back or has no letters, are none."""
    assert sse.KEEP_ALIVE_SEC == 15.0
    monkeypatch.setattr(sse, "KEEP_ALIVE_SEC", 0.05)

    async def keep_talking(job: Job, stream: JobStream) -> None:
        for number in range(10_000):
            if talks:
                job.token(at(2), number, "")
                stream.wake()
            await asyncio.sleep(0.01)

    async def chunks_until_three_comments() -> list[object]:
        job = running_job()
        stream = JobStream(job)
        response = answer(stream)
        assert stream.readers == 1
        talking = asyncio.create_task(keep_talking(job, stream))
        chunks: list[object] = []

        async def send(message: Message) -> None:
            if message.get("body"):
                chunks.append(message["body"])
            if chunks.count(KEEPALIVE_COMMENT) == 3 and job.live:
                talking.cancel()
                job.finished(at(3), "stop", freed_at(3))
                stream.wake()

        async with asyncio.timeout(20):
            await response.stream_response(send)
        return chunks

    chunks = asyncio.run(chunks_until_three_comments())
    assert chunks.count(KEEPALIVE_COMMENT) == 3
    assert KEEPALIVE_COMMENT.startswith(b":")
    assert KEEPALIVE_COMMENT.endswith(b"\n\n")
    assert chunks[-1] != KEEPALIVE_COMMENT


def test_the_server_speaks_the_asgi_version_under_which_an_idle_stream_is_cancelled() -> None:
    """Starlette listens for a disconnect beside the stream only when the server says ASGI spec 2.3 or older.

    If this fails after an upgrade, the tests above say whether idle streams still notice.
    """
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["asgi"]["spec_version"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def ask() -> None:
        listener = bind("127.0.0.1", 0)
        protocol: Any = partial(
            BoundedProtocol,
            refuse=lambda error, path: Response(),
            all_open=Connections(BoundedProtocol.make_room),
        )
        server = Server(uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 204")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.should_exit = True
        await serving

    asyncio.run(ask())
    assert seen == ["2.3"]
