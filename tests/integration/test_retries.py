"""A client's automatic retry of a cancelled request does not restart the job (contract, sections 3 and 10)."""

import json
import threading
from typing import Any

import httpx2
import pytest

from tests.helpers import SLOW, ended_state, fresh_id, script
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": SLOW}]}
APIS: dict[str, dict[str, Any]] = {
    "chat/completions": CHAT,
    "completions": {"prompt": SLOW, "max_tokens": 500},
    "responses": {"input": SLOW},
}


def ask(worker: RunningWorker, api: str, job_id: str, **more: Any) -> httpx2.Response:
    """A request of OpenAI's API."""
    return worker.client.post(f"/v1/{api}", json={**APIS[api], **more}, headers={"X-Job-Id": job_id})


def cancelled_meanwhile(worker: RunningWorker, api: str, job_id: str, **more: Any) -> httpx2.Response:
    """The answer to a request that another client cancels while it generates."""

    def cancel() -> None:
        wait_until(lambda: worker.record(job_id).get("tokens_out", 0) > 2, what="some tokens")
        worker.cancel(job_id)

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    answer = ask(worker, api, job_id, **more)
    cancelling.join()
    return answer


def says_cancelled(answer: httpx2.Response) -> bool:
    """Whether an answer, streamed or not, is that of a cancelled request."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        last = [line for line in answer.text.splitlines() if line.startswith("data: ")][-1]
        found = json.loads(last.removeprefix("data: "))
        return "CANCELLED" in (found.get("code"), found.get("error", {}).get("code"))
    return (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
def test_a_retry_of_a_cancelled_request_computes_nothing(
    worker: RunningWorker, api: str, stream: bool
) -> None:
    """However often it is repeated; `/execute`, which has no automatic retries, can use the id again."""
    job_id = fresh_id("retried")
    first = cancelled_meanwhile(worker, api, job_id, stream=stream)
    assert says_cancelled(first), first.text
    for _ in range(3):
        assert says_cancelled(ask(worker, api, job_id, stream=stream))
        record = ended_state(worker, job_id)
        assert (record["state"], record["tokens_out"]) == ("cancelled", 0)
        assert record["prompt_tokens_processed"] == 0
    assert worker.execute(job_id, script(text="ok")).finished().text == "ok"


def test_a_whole_answer_that_was_cancelled_is_400(worker: RunningWorker) -> None:
    """LangChain.js retries after a 499; OpenAI's Agents SDK takes any 200 for a complete answer."""
    for api in APIS:
        answer = cancelled_meanwhile(worker, api, fresh_id("whole"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "CANCELLED")
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("api", APIS)
def test_a_whole_answer_that_ran_out_of_time_is_504(worker: RunningWorker, api: str) -> None:
    """It has the usage so far; it is never a success with part of the text."""
    answer = ask(worker, api, fresh_id("late"), timeout_ms=100)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "INFERENCE_TIMEOUT")
    assert answer.json()["error"]["usage"]


def test_a_retry_of_several_choices_computes_nothing_either(worker: RunningWorker) -> None:
    """Also if only one of them was cancelled."""
    job_id = fresh_id("choices")
    stopping = threading.Timer(0.3, worker.cancel, [f"{job_id}.1"])
    stopping.start()
    assert says_cancelled(ask(worker, "chat/completions", job_id, n=3))
    stopping.join()
    assert says_cancelled(ask(worker, "chat/completions", job_id, n=3))
    assert ended_state(worker, job_id)["tokens_out"] == 0


def test_only_a_clients_cancel_makes_a_request_with_its_id_a_retry(worker: RunningWorker) -> None:
    """A disconnect does not: the client may still want its answer."""
    job_id = fresh_id("left")
    with pytest.raises(httpx2.TimeoutException):
        worker.client.post("/v1/chat/completions", json=CHAT, headers={"X-Job-Id": job_id}, timeout=0.3)
    assert ended_state(worker, job_id)["state"] == "cancelled"
    answer = ask(worker, "completions", job_id, prompt=script(text="ok"))
    assert answer.json()["choices"][0]["text"] == "ok"


def test_after_the_memory_of_cancels_the_id_is_as_any_other() -> None:
    """`--cancel-memory-sec`, counted from the cancel and not from its retries."""
    with running_worker(cancel_memory_sec=0.7) as worker:
        job_id = fresh_id("later")
        assert says_cancelled(cancelled_meanwhile(worker, "completions", job_id))

        def answered() -> bool:
            answer = ask(worker, "completions", job_id, prompt=script(text="ok"))
            return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "ok"

        wait_until(answered, what="a request of that id that runs")
