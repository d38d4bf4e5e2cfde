"""The client library: however a job is left, it is stopped; whatever breaks, nothing is lost or doubled."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from itertools import chain
from typing import Any

import anyio
import pytest

from tests.helpers import ended_state, fresh_id, script
from worker_orcd.client import (
    Client,
    JobCancelled,
    JobFailed,
    SyncClient,
    SyncJob,
    WorkerRefused,
    WorkerUnreachable,
)
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker, wait_until

SLOW = script(token_ms=20)


def receipt_of(worker: RunningWorker, job_id: str, reason: str = "client") -> dict[str, Any]:
    """Wait until a job was stopped for this reason."""
    record = ended_state(worker, job_id)
    assert record["state"] == "cancelled", record
    receipt: Any = record["receipt"]
    assert receipt["reason"] == reason
    return dict(receipt)


def undisturbed(tokens: int) -> str:
    """What a greedy job without a script says."""
    return "".join(f"w{n} " for n in range(tokens))


class Relay:
    """A connection in between. It can be cut, and it may hide from the worker that a client has left, as proxies do."""

    def __init__(self, port: int, *, hides_leaving: bool = False) -> None:
        self._port = port
        self._hides_leaving = hides_leaving
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far, self._hides_leaving), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, hides: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in () if hides else (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut every connection there is."""
        pairs, self._pairs = self._pairs, []
        for end in chain.from_iterable(pairs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()
        self.cut()


@pytest.fixture
def relay(worker: RunningWorker) -> Iterator[Relay]:
    """Between client and worker."""
    made = Relay(worker.port)
    yield made
    made.close()


@pytest.fixture
def blind(worker: RunningWorker) -> Iterator[Relay]:
    """One that hides from the worker that a client has left."""
    made = Relay(worker.port, hides_leaving=True)
    yield made
    made.close()


# Running.


def test_a_job_is_read_to_its_end(worker: RunningWorker) -> None:
    """Its tokens, its text, its ending; nothing is cancelled."""

    async def use() -> None:
        async with Client(worker.url) as client:
            async with client.execute(script(text="Hi 👋", token_ms=1), seed=7) as job:
                texts = [token.text async for token in job]
            assert "".join(texts) == job.text == "Hi 👋"
            assert job.started is not None
            assert job.started["seed"] == 7
            assert job.ending is not None
            assert job.ending.stop_reason == "stop"
            assert await job.cancel() is None
            record = await client.job(job.job_id)
            assert record is not None
            assert record["state"] == "completed"
            assert (await client.health())["status"] == "healthy"
            assert job.job_id in {one["job_id"] for one in await client.jobs()}
            assert await client.job("nobody") is None

    asyncio.run(use())


def test_a_cancel_returns_the_receipt_and_reading_on_says_so(worker: RunningWorker) -> None:
    """As often as one likes."""

    async def use() -> None:
        async with Client(worker.url) as client, client.execute(SLOW) as job:
            assert (await anext(aiter(job))).index == 0
            receipt = await job.cancel()
            with pytest.raises(JobCancelled) as caught:
                [token async for token in job]
            assert receipt is not None
            assert receipt.kv_cells_after == 0
            assert receipt.stopped_ms <= receipt.told_ms
            assert (caught.value.reason, caught.value.receipt) == ("client", receipt)
            assert await job.cancel() == receipt

    asyncio.run(use())


def test_a_group_is_cancelled(worker: RunningWorker) -> None:
    """Each with its receipt."""

    async def use() -> None:
        async with (
            Client(worker.url) as client,
            client.execute(SLOW, group="lib-1") as one,
            client.execute(SLOW, group="lib-1") as other,
        ):
            assert len(await client.cancel(group="lib-1")) == 2
            assert await client.cancel(group="nobody") == []
            for job in (one, other):
                with pytest.raises(JobCancelled):
                    [token async for token in job]

    asyncio.run(use())


# Leaving.


async def _break(client: Client, job_id: str) -> None:
    async with client.execute(SLOW, job_id=job_id) as job:
        async for _ in job:
            break


async def _raise(client: Client, job_id: str) -> None:
    async def fail() -> None:
        async with client.execute(SLOW, job_id=job_id) as job:
            async for _ in job:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def _task(client: Client, job_id: str) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async with client.execute(SLOW, job_id=job_id) as job:
            async for _ in job:
                began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _timeout(client: Client, job_id: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), client.execute(SLOW, job_id=job_id) as job:
            [token async for token in job]


async def _scope(client: Client, job_id: str) -> None:
    with anyio.move_on_after(0.3):
        async with client.execute(SLOW, job_id=job_id) as job:
            [token async for token in job]


async def _generator(client: Client, job_id: str) -> None:
    async def texts() -> Any:
        async with client.execute(SLOW, job_id=job_id) as job:
            async for token in job:
                yield token.text

    async with aclosing(texts()) as reading:
        async for _ in reading:
            break


async def _unread(client: Client, job_id: str) -> None:
    async with client.execute(SLOW, job_id=job_id):
        pass


async def _prefill(client: Client, job_id: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), client.execute(script(2000, row_ms=5), job_id=job_id) as job:
            [token async for token in job]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("leave", [_break, _raise, _task, _timeout, _scope, _generator, _unread, _prefill])
def test_however_a_job_is_left_it_is_cancelled(
    worker: RunningWorker, blind: Relay, leave: Any, resume: bool
) -> None:
    """By a cancel: nothing else reaches the worker here. And it has stopped when the block is left."""
    job_id = fresh_id("left")

    class Resuming(Client):
        def execute(self, prompt: str, **more: Any) -> Any:
            return super().execute(prompt, resume=resume, **more)

    async def use() -> None:
        async with Resuming(blind.url) as client:
            await leave(client, job_id)

    asyncio.run(use())
    assert worker.record(job_id)["state"] == "cancelled"
    receipt_of(worker, job_id)


def test_a_timeout_before_the_answer_cancels_what_may_have_been_taken(narrow: RunningWorker) -> None:
    """The request was sent; nobody knows more."""
    busy = narrow.execute(fresh_id("busy"), SLOW).tokens_seen(1)
    job_id = fresh_id("early")

    async def use() -> None:
        async with Client(narrow.url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), client.execute(SLOW, job_id=job_id) as job:
                    [token async for token in job]

    asyncio.run(use())
    narrow.cancel(busy.job_id)
    assert ended_state(narrow, job_id)["state"] == "cancelled"
    busy.finished()


def test_a_refused_job_cancels_nobody_else(worker: RunningWorker) -> None:
    """Its id is in use: that job goes on."""
    first = worker.execute(fresh_id("first"), SLOW, max_tokens=30).tokens_seen(1)

    async def use() -> None:
        async with Client(worker.url) as client:
            with pytest.raises(WorkerRefused) as caught:
                async with client.execute("x", job_id=first.job_id):
                    pass
            assert (caught.value.code, caught.value.status) == ("JOB_ID_IN_USE", 409)

    asyncio.run(use())
    assert first.finished().events[-1].event == "end"


def test_a_reader_of_somebody_elses_job_cancels_nothing(worker: RunningWorker) -> None:
    """It follows, from the start or from the middle, and leaves."""
    job = worker.execute(fresh_id("theirs"), SLOW, max_tokens=30, temperature=0).tokens_seen(3)

    async def use() -> str:
        async with Client(worker.url) as client:
            async with client.follow(job.job_id) as reader:
                async for _ in reader:
                    break
            async with client.follow(job.job_id, after=10) as reader:
                return "".join([token.text async for token in reader])

    rest = asyncio.run(use())
    assert job.finished().events[-1].event == "end"
    assert rest == job.text[len(undisturbed(10)) :]


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
    """Once there is room, it runs; without retries it is told."""
    others = [narrow.execute(fresh_id("full"), SLOW, max_tokens=60) for _ in range(3)]
    for other in others:
        other.wait(lambda s: s.status is not None, what="an answer")

    async def use() -> None:
        async with Client(narrow.url, retries=0) as client:
            with pytest.raises(WorkerRefused) as caught:
                async with client.execute("x"):
                    pass
            assert (caught.value.code, caught.value.retry_after_sec) == ("QUEUE_FULL", 1.0)
        async with Client(narrow.url, retries=5) as client, client.execute(script(text="ok")) as job:
            assert "".join([token.text async for token in job]) == "ok"

    asyncio.run(use())
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


def test_a_stream_that_breaks_without_resume_is_told_and_the_job_is_stopped(
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


# The synchronous face.


def read(job: SyncJob) -> None:
    """All of it."""
    with job:
        for _ in job:
            pass


def test_the_synchronous_face_does_the_same(worker: RunningWorker) -> None:
    """Reading, cancelling from another thread, leaving, following."""
    with SyncClient(worker.url) as client:
        with client.execute(script(text="abc")) as job:
            assert [token.text for token in job] == ["a", "b", "c"]
        assert job.ending is not None
        assert client.health()["status"] == "healthy"
        job = client.execute(SLOW)
        threading.Timer(0.3, job.cancel).start()
        with pytest.raises(JobCancelled):
            read(job)
        assert job.receipt is not None
        with client.execute(SLOW) as job:
            for _ in job:
                break
        receipt_of(worker, job.job_id)
        with client.follow(job.job_id) as again:
            names = [event.name for event in again.events()]
        assert names[-1] == "error"
        assert client.cancel("nobody") == []
        assert client.job("nobody") is None


def test_ctrl_c_in_the_synchronous_loop_cancels_the_job(worker: RunningWorker, blind: Relay) -> None:
    """While it waits for a token that does not come."""
    job_id = fresh_id("ctrl-c")
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
    began = time.monotonic()
    with SyncClient(blind.url) as client, pytest.raises(KeyboardInterrupt):
        read(client.execute(script(3000, row_ms=5), job_id=job_id))
    assert time.monotonic() - began < 5
    receipt_of(worker, job_id)


def test_a_key_is_shown(tmp_path: Any) -> None:
    """As the worker wants it."""
    keys = tmp_path / "keys.txt"
    keys.write_text("anna-0123456789abcdef\n")
    with running_worker(api_key_file=str(keys)) as guarded:
        with (
            SyncClient(guarded.url, api_key="anna-0123456789abcdef") as client,
            client.execute(script(text="ok")) as job,
        ):
            assert "".join(token.text for token in job) == "ok"
        with SyncClient(guarded.url) as client, pytest.raises(WorkerRefused) as caught:
            client.jobs()
        assert caught.value.code == "UNAUTHORIZED"
        wait_until(lambda: guarded.health()["jobs_running"] == 0, what="rest")
