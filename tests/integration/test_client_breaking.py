"""The client library when something breaks: nothing is lost or doubled, and only what may be is tried again."""

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.helpers import SLOW, ended_state, fresh_id, queued, receipt_of, script, undisturbed
from tests.relay import Answering, Relay
from worker_orcd.client import (
    Client,
    JobCancelled,
    JobFailed,
    WorkerRefused,
    WorkerUnreachable,
    job as client_job,
)
from worker_orcd.testing.harness import RunningWorker, free_port


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], Answering]]:
    """Makes something that answers everything with these bytes."""
    made: list[Answering] = []

    def make(answer: bytes) -> Answering:
        made.append(Answering(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def refusal(status: str, code: str, **headers: str) -> bytes:
    """A refusal that is worth another try, with these headers."""
    body = json.dumps({"error": {"code": code, "message": "not now", "retriable": True}}).encode()
    head = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


# Being refused, failing.


def test_refusals_and_failures_have_their_codes(worker: RunningWorker) -> None:
    """As the worker said them."""

    async def use() -> None:
        async with Client(worker.url) as client:
            with pytest.raises(WorkerRefused) as caught:
                async with client.execute("x", temperature=9):
                    pass
            assert (caught.value.code, caught.value.param) == ("INVALID_REQUEST", "temperature")
            assert caught.value.correlation_id == client.correlation_id
            async with client.execute(SLOW, timeout_ms=200) as job:
                with pytest.raises(JobFailed) as late:
                    [token async for token in job]
            assert (late.value.code, late.value.retriable) == ("INFERENCE_TIMEOUT", True)

    asyncio.run(use())


def test_a_worker_that_is_not_there_is_unreachable() -> None:
    """After its retries."""

    async def use() -> None:
        async with Client(f"http://127.0.0.1:{free_port()}", retries=1) as client:
            with pytest.raises(WorkerUnreachable):
                await client.health()
            with pytest.raises(WorkerUnreachable):
                async with client.execute("x"):
                    pass

    asyncio.run(use())


def test_a_full_queue_is_tried_again(narrow: RunningWorker) -> None:
    """Once there is room, it runs; without retries the refusal is raised."""
    running = narrow.execute(fresh_id("full"), SLOW).tokens_seen(1)
    others = [running, *(queued(narrow, narrow.execute(fresh_id("full"), SLOW)) for _ in range(2))]

    async def refused() -> None:
        async with Client(narrow.url, retries=0) as client:
            with pytest.raises(WorkerRefused) as caught:
                async with client.execute("x"):
                    pass
            assert (caught.value.code, caught.value.retry_after_sec) == ("QUEUE_FULL", 1.0)

    async def patient(correlation_id: str) -> None:
        client = Client(narrow.url, retries=5, correlation_id=correlation_id)
        async with client, client.execute(script(text="ok")) as job:
            assert "".join([token.text async for token in job]) == "ok"

    def make_room(correlation_id: str) -> None:
        narrow.narrated("error", code="QUEUE_FULL", correlation_id=correlation_id)
        for other in others:
            narrow.cancel(other.job_id)

    asyncio.run(refused())
    room = threading.Thread(target=make_room, args=("patient",))
    room.start()
    asyncio.run(patient("patient"))
    room.join()
    for other in others:
        other.finished()


# Breaking.


def test_a_stream_that_breaks_is_picked_up_again(worker: RunningWorker, relay: Relay) -> None:
    """Again and again: no token is lost or doubled."""

    async def use() -> None:
        async with Client(relay.url) as client:
            async with client.execute(script(token_ms=10), resume=True, max_tokens=60, temperature=0) as job:
                seen = []
                async for token in job:
                    seen.append(token.index)
                    if token.index in (5, 6, 20, 40):
                        relay.cut()
            assert seen == list(range(60))
            assert job.text == undisturbed(60)

    asyncio.run(use())
    assert worker.client.get("/jobs").status_code == 200


def test_a_stream_is_not_picked_up_in_another_use_of_its_id(worker: RunningWorker, relay: Relay) -> None:
    """Its job ended while nobody read it, and the id was used again: an error, and none of the other job's text."""
    job_id = fresh_id("reused")
    read: list[str] = []

    async def use() -> None:
        async with (
            Client(relay.url) as client,
            client.execute(
                script(token_ms=20), job_id=job_id, resume=True, max_tokens=500, temperature=0
            ) as job,
        ):
            async for token in job:
                read.append(token.text)
                if token.index == 5:
                    relay.cut()
                    worker.cancel(job_id)
                    ended_state(worker, job_id)
                    worker.execute(job_id, script(text="another job's text", token_ms=1)).finished()

    with pytest.raises(WorkerUnreachable):
        asyncio.run(use())
    assert "".join(read) == undisturbed(len(read))


def test_a_stream_that_breaks_without_resume_is_reported_and_the_job_is_stopped(
    worker: RunningWorker, relay: Relay
) -> None:
    """By the cancel when the block is left, or because its reader is gone, whichever comes first."""
    job_id = fresh_id("broken")

    async def use() -> None:
        async with Client(relay.url) as client, client.execute(SLOW, job_id=job_id) as job:
            async for token in job:
                if token.index == 3:
                    relay.cut()

    with pytest.raises(WorkerUnreachable):
        asyncio.run(use())
    assert ended_state(worker, job_id)["state"] == "cancelled"


def test_an_engine_that_dies_is_not_noticed(battered: RunningWorker) -> None:
    """The worker carries the job on; the client reads on."""

    async def use() -> None:
        async with Client(battered.url) as client, client.execute(SLOW, max_tokens=30, temperature=0) as job:
            async for token in job:
                if token.index == 5:
                    battered.signal_engine(signal.SIGKILL)
            assert job.text == undisturbed(30)

    asyncio.run(use())


def test_a_stream_that_can_be_opened_but_never_holds_is_given_up(
    worker: RunningWorker, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pauses that grow, and after its time, though each attempt looks like a success at first."""
    monkeypatch.setattr(client_job, "RESUME_SEC", 0.5)

    job_id = fresh_id("holds")

    async def use() -> None:
        async with Client(relay.url) as client, client.execute(SLOW, job_id=job_id, resume=True) as job:
            async for token in job:
                if token.index == 3:
                    relay.fates.extend(["dropped"] * 50)
                    relay.cut()

    with pytest.raises(WorkerUnreachable):
        asyncio.run(use())
    worker.cancel(job_id)
    reads = [asked for asked in relay.asked if asked.startswith("GET")]
    assert 2 <= len(reads) <= 6


# Trying again.


def test_a_job_that_may_have_been_taken_is_not_sent_twice(relay: Relay) -> None:
    """Its connection breaks after it was sent: only the cancel is sent, again and again until it arrives."""
    relay.fates.extend(["dropped"] * 3)

    async def use() -> None:
        async with Client(relay.url, retries=5) as client:
            with pytest.raises(WorkerUnreachable) as caught:
                async with client.execute(SLOW):
                    pass
            assert caught.value.sent

    asyncio.run(use())
    assert relay.asked == ["POST /execute HTTP/1.1"] + ["POST /cancel HTTP/1.1"] * 3


def test_a_cancel_whose_connection_breaks_is_sent_again(worker: RunningWorker, blind: Relay) -> None:
    """Also by a client that tries nothing else again."""

    async def use() -> None:
        async with Client(blind.url, retries=0) as client, client.execute(SLOW) as job:
            blind.fates.extend(["dropped"] * 2)
            receipt = await job.cancel()
            assert receipt is not None
            assert receipt.job_id == job.job_id
            receipt_of(worker, job.job_id)

    asyncio.run(use())


def test_reading_again_does_no_harm(relay: Relay) -> None:
    """A `GET` whose connection breaks is sent again, as often as was asked for."""
    relay.fates.extend(["dropped"] * 4)

    async def use() -> None:
        async with Client(relay.url, retries=1) as client:
            with pytest.raises(WorkerUnreachable):
                await client.health()
            with pytest.raises(WorkerUnreachable):
                await client.jobs()
            assert (await client.health())["status"] == "healthy"

    asyncio.run(use())
    assert len(relay.asked) == 5


def test_a_refusal_that_is_not_for_now_is_not_tried_again(answering: Callable[[bytes], Answering]) -> None:
    """Nor one that asks for more patience than a client has."""
    later = answering(refusal("503 Service Unavailable", "DRAINING", Retry_After="3600"))
    soon = answering(refusal("429 Too Many Requests", "QUEUE_FULL", Retry_After="0"))

    async def asked(url: str) -> WorkerRefused:
        async with Client(url, retries=2) as client:
            with pytest.raises(WorkerRefused) as caught:
                async with client.execute("x"):
                    pass
            return caught.value

    assert asyncio.run(asked(later.url)).retry_after_sec == 3600
    assert later.asked == 1
    assert asyncio.run(asked(soon.url)).code == "QUEUE_FULL"
    assert soon.asked == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n<html>nginx</html>",
        refusal("503 Service Unavailable", "DRAINING", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        b"id: one\ndata: {}\n\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["a gateway's page", "a date", "another's events", "another protocol"],
)
def test_what_is_no_worker_is_reported_as_such(
    answering: Callable[[bytes], Answering], answer: bytes
) -> None:
    """Whatever answers there, it is one of the library's own errors."""

    async def use(url: str) -> None:
        async with Client(url) as client, client.execute("x") as job:
            [token async for token in job]

    with pytest.raises(WorkerUnreachable):
        asyncio.run(use(answering(answer).url))


def test_that_a_job_was_cancelled_is_reported_though_its_receipt_cannot_be_had(
    worker: RunningWorker, relay: Relay
) -> None:
    """The record cannot be asked for any more when the stream has ended."""

    async def use() -> None:
        async with Client(relay.url, retries=0) as client, client.execute(SLOW) as job:
            relay.fates.append("dropped")
            worker.cancel(job.job_id)
            with pytest.raises(JobCancelled) as caught:
                [token async for token in job]
            assert (caught.value.reason, caught.value.receipt) == ("client", None)

    asyncio.run(use())
