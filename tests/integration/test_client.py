"""The client library: however a job is left, it is stopped."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers import SLOW, ended_state, fresh_id, receipt_of, script, undisturbed
from tests.relay import Relay
from worker_orcd.client import (
    Client,
    JobCancelled,
    JobFailed,
    NarrationEvent,
    SyncClient,
    SyncJob,
    WorkerRefused,
    WorkerUnreachable,
)
from worker_orcd.client.connection import Connection
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker, wait_until

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

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
            assert receipt.stopped_ms <= receipt.terminal_ms
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
            receipts = await client.cancel(group="lib-1")
            assert {receipt.job_id for receipt in receipts} == {one.job_id, other.job_id}
            assert await client.cancel(group="nobody") == []
            for job in (one, other):
                with pytest.raises(JobCancelled):
                    [token async for token in job]

    asyncio.run(use())


def test_a_record_is_waited_for_until_its_job_has_ended(worker: RunningWorker) -> None:
    """Or for so long; and an unknown job has none."""

    async def use() -> None:
        async with Client(worker.url) as client, client.execute(SLOW, max_tokens=10) as job:
            early = await client.ended(job.job_id, within_sec=0)
            late = await client.ended(job.job_id)
            assert early is not None
            assert late is not None
            assert (early["ended_ms"], late["state"]) == (None, "completed")
            assert await client.ended("nobody") is None

    asyncio.run(use())


def test_anything_else_can_be_asked(worker: RunningWorker) -> None:
    """Status and JSON come back; what is not allowed is a refusal."""

    async def use() -> None:
        async with Client(worker.url) as client:
            answer = await client.ask("POST", "/cancel", body={"job_id": "nobody"}, allowed=(202,))
            assert (answer.status, answer.body) == (202, {"status": "cancelling", "job_id": "nobody"})
            with pytest.raises(WorkerRefused) as caught:
                await client.ask("GET", "/nowhere")
            assert (caught.value.status, caught.value.code) == (404, "INVALID_REQUEST")

    asyncio.run(use())


# A conversation.

SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SLOW}]


def test_a_conversation_continues_as_a_job_like_any_other(worker: RunningWorker) -> None:
    """Its tokens, its text, its ending, its record."""

    async def use() -> None:
        async with Client(worker.url) as client:
            async with client.chat(SAID, job_id=fresh_id("chat"), max_tokens=3, temperature=0) as job:
                tokens = [token async for token in job]
            assert [token.index for token in tokens] == [0, 1, 2]
            assert "".join(token.text for token in tokens) == job.text == undisturbed(3)
            assert job.ending is not None
            assert (job.ending.tokens_out, job.ending.stop_reason) == (3, "length")
            record = await client.job(job.job_id)
            assert record is not None
            assert (record["state"], record["tokens_out"]) == ("completed", 3)

    asyncio.run(use())


def test_a_conversation_that_is_left_is_cancelled(worker: RunningWorker, blind: Relay) -> None:
    """And one that is stopped says what it did, when read on as well."""

    async def use() -> None:
        async with Client(blind.url) as client:
            async with client.chat(SAID) as left:
                async for _ in left:
                    break
            receipt_of(worker, left.job_id)
            async with client.chat(SAID) as job:
                await anext(aiter(job))
                receipt = await job.cancel()
                assert receipt is not None
                with pytest.raises(JobCancelled) as caught:
                    [token async for token in job]
                error = caught.value
                assert (error.receipt, error.reason, error.phase) == (receipt, "client", "decode")
            assert job.ending is None

    asyncio.run(use())


def test_a_conversation_that_is_refused_or_fails_says_so(worker: RunningWorker) -> None:
    """With the worker's codes and the field's name."""

    async def use() -> None:
        async with Client(worker.url) as client:
            with pytest.raises(WorkerRefused) as refused:
                async with client.chat([]):
                    pass
            assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "messages")
            async with client.chat(SAID, timeout_ms=200) as job:
                with pytest.raises(JobFailed) as failed:
                    [token async for token in job]
            assert (failed.value.code, failed.value.retriable) == ("INFERENCE_TIMEOUT", True)

    asyncio.run(use())


# The narration.


def test_what_a_worker_narrates_is_received_from_where_one_was(worker: RunningWorker) -> None:
    """What was before and what happens, each once, also for a reader that comes back."""

    async def use() -> None:
        async with Client(worker.url) as client:

            async def received_of(job_id: str, after: str | None) -> list[NarrationEvent]:
                received = []
                async with aclosing(client.narration(after=after)) as narration:
                    async for one in narration:
                        received.append(one)
                        if (one.data["action"], one.data.get("job_id")) == ("execute_end", job_id):
                            return received
                return []

            async with client.execute(script(text="a")) as first:
                [token async for token in first]
            before = await received_of(first.job_id, None)
            async with client.execute(script(text="b")) as second:
                [token async for token in second]
            since = await received_of(second.job_id, before[-1].id)
            reported_of = {one.data.get("job_id") for one in since}
            assert reported_of == {second.job_id}
            assert {one.id for one in since}.isdisjoint(one.id for one in before)
            everything = await received_of(second.job_id, "not known any more")
            assert [one.id for one in everything[-len(since) :]] == [one.id for one in since]
            assert len(everything) > len(since)

    asyncio.run(use())


def test_the_narration_ends_with_its_worker() -> None:
    """Its last events arrive, and the iteration ends; a broken stream raises."""
    with running_worker() as going, SyncClient(going.url) as client:
        narration = client.narration()
        first = next(narration)
        assert first.data["action"] == "startup"
        assert going.stop() == 0
        actions = [one.data["action"] for one in narration]
        assert "drain" in actions
    with running_worker() as doomed, SyncClient(doomed.url, retries=0) as client:
        narration = client.narration()
        next(narration)
        doomed.process.kill()
        with pytest.raises(WorkerUnreachable):
            list(narration)


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


def test_a_task_that_is_cancelled_again_while_it_leaves_still_cancels_its_job(
    worker: RunningWorker, blind: Relay
) -> None:
    """Though the first attempt to say so breaks, and nothing but the cancel can reach the worker."""
    job_id = fresh_id("again")

    async def use() -> None:
        async with Client(blind.url) as client:
            began = asyncio.Event()

            async def read() -> None:
                async with client.execute(SLOW, job_id=job_id) as job:
                    async for _ in job:
                        began.set()

            task = asyncio.create_task(read())
            await began.wait()
            blind.fates.append("dropped")
            task.cancel()
            await asyncio.to_thread(wait_until, lambda: len(blind.asked) > 1, what="the first attempt")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(use())
    assert blind.asked[1:] == ["POST /cancel HTTP/1.1"] * 2
    assert worker.record(job_id)["state"] == "cancelled"
    receipt_of(worker, job_id)


def test_more_jobs_than_an_http_client_has_connections_for_can_be_cancelled(worker: RunningWorker) -> None:
    """The hundred and first does not wait for one of the others to end."""
    group = fresh_id("many")

    async def use() -> None:
        async with Client(worker.url) as client, AsyncExitStack() as jobs:
            for _ in range(101):
                await jobs.enter_async_context(client.execute(SLOW, group=group))
            began = time.monotonic()
            receipts = await client.cancel(group=group)
            assert time.monotonic() - began < 7
            assert len({receipt.job_id for receipt in receipts}) == 101

    asyncio.run(use())


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


def test_a_job_that_was_certainly_never_sent_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cancel would be remembered by the worker that comes up, and meet the next try."""
    cancels: list[object] = []

    async def noticed(_self: Connection, named: object, _wait_sec: int) -> list[object]:
        cancels.append(named)
        return []

    monkeypatch.setattr(Connection, "cancel", noticed)

    async def use() -> None:
        async with Client(f"http://127.0.0.1:{free_port()}", retries=0) as client:
            with pytest.raises(WorkerUnreachable) as caught:
                async with client.execute("x", job_id="again"):
                    pass
            assert not caught.value.sent

    asyncio.run(use())
    assert cancels == []


def test_a_reader_of_another_clients_job_cancels_nothing(worker: RunningWorker) -> None:
    """It follows, from the start or from the middle, and leaves."""
    job = worker.execute(fresh_id("theirs"), SLOW, max_tokens=30, temperature=0).tokens_seen(3)

    async def use() -> str:
        async with Client(worker.url) as client:
            async with client.follow(job.job_id) as reader:
                async for _ in reader:
                    break
            async with client.follow(job.job_id, after=f"{job.events[0].incarnation}.10") as reader:
                return "".join([token.text async for token in reader])

    rest = asyncio.run(use())
    assert job.finished().events[-1].event == "end"
    assert rest == job.text[len(undisturbed(10)) :]


def test_a_reader_that_comes_back_after_the_end_is_done_at_once(worker: RunningWorker) -> None:
    """There is nothing more, and that is no error."""
    job = worker.execute(fresh_id("done"), max_tokens=2).finished()

    async def use() -> int:
        async with Client(worker.url) as client, client.follow(job.job_id, after=job.events[-1].id) as reader:
            return len([event async for event in reader.events()])

    assert asyncio.run(use()) == 0


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
        with client.chat(SAID, max_tokens=2, temperature=0) as chat:
            assert "".join(token.text for token in chat) == undisturbed(2)
        assert client.cancel("nobody") == []
        assert client.ended(job.job_id) == client.job(job.job_id)
        assert client.ask("GET", "/livez").status == 200
        left_open = client.narration()
        assert next(left_open).data["worker_id"] == worker.health()["worker_id"]
        assert client.job("nobody") is None


def test_a_synchronous_client_that_is_never_closed_does_not_keep_its_program(worker: RunningWorker) -> None:
    """It ends with it, as other HTTP clients do; and closing twice is closing once."""
    program = (
        "from worker_orcd.client import SyncClient\n"
        f"kept = SyncClient({worker.url!r})\n"
        f"with SyncClient({worker.url!r}) as closed:\n"
        "    closed.close()\n"
        "print(kept.health()['status'])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")


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


def test_ctrl_c_while_nobody_knows_whether_the_job_was_taken_cancels_it(
    worker: RunningWorker, blind: Relay
) -> None:
    """Its answer does not come; it has stopped when the interruption is raised."""
    job_id = fresh_id("ctrl-c")
    main = threading.main_thread().ident
    assert main is not None
    blind.fates.append("mute")

    def interrupt_once_taken() -> None:
        wait_until(lambda: "state" in worker.record(job_id), what="the job")
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt_once_taken).start()
    with SyncClient(blind.url) as client, pytest.raises(KeyboardInterrupt):
        read(client.execute(SLOW, job_id=job_id))
    assert worker.record(job_id)["state"] == "cancelled"
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


WITHOUT_THE_WORKERS_PACKAGES = """
import sys, tomllib
from importlib.metadata import packages_distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as name_of

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = {name_of(Requirement(line).name) for lines in project["optional-dependencies"].values() for line in lines}
missing = {top for top, given in packages_distributions().items() if extras.intersection(map(name_of, given))}
assert {"fastapi", "llama_cpp", "msgspec", "typer"} <= missing

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in missing:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
"""
"""Python as it is where only the client library is installed."""


def where_only_the_client_is_installed(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program there to its end."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_WORKERS_PACKAGES + program, str(PYPROJECT), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_library_needs_nothing_of_what_a_worker_needs(worker: RunningWorker) -> None:
    """It starts a job, reads it and cancels it without the packages of the extras."""
    done = where_only_the_client_is_installed(
        """
from worker_orcd.client import SyncClient

with SyncClient(sys.argv[2]) as client:
    with client.execute(sys.argv[3], max_tokens=1000) as job:
        next(iter(job))
        print(job.cancel().reason)
    print(client.job(job.job_id)["state"])
""",
        worker.url,
        script(token_ms=20),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["client", "cancelled"]


def test_the_command_says_in_one_line_what_it_lacks() -> None:
    """And nothing of where in the code that showed."""
    done = where_only_the_client_is_installed("from worker_orcd.__main__ import main\nmain()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r"worker-orcd: only the client library is installed \(\w+ is missing\); "
        r"to run a worker: pip install 'worker-orcd\[worker,model\]'\n",
        done.stderr,
    )
