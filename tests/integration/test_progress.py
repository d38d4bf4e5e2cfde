"""Progress of a prompt: on `/execute`, in OpenAI's streams, in the client library, and on a terminal."""

import json
from typing import Any

import pytest

from tests.helpers import fresh_id, script
from tests.terminal import Terminal
from worker_orcd.client import Event, Progress, SyncClient
from worker_orcd.testing.harness import RunningWorker

PROMPT_TOKENS = 1200


def long_prompt() -> str:
    """A new prompt of several steps."""
    return script(PROMPT_TOKENS, row_ms=0.3, text="ok")


def test_progress_comes_between_started_and_the_tokens_and_is_numbered_for_resumed_readers(
    worker: RunningWorker,
) -> None:
    """Only for a job that requests it. A reader that reconnects gets the same events with the same ids."""
    stream = worker.execute(fresh_id(), long_prompt(), progress=True, cache_prompt=False).finished()
    stream.assert_whole()
    progress = [event.data for event in stream.events if event.event == "progress"]
    assert progress
    for reported in progress:
        assert list(reported) == ["prompt_tokens", "processed", "cached"]
        assert (reported["prompt_tokens"], reported["cached"]) == (PROMPT_TOKENS, 0)
    counts = [reported["processed"] for reported in progress]
    assert counts == sorted(set(counts))
    assert 0 < counts[0] < PROMPT_TOKENS
    for seen in (0, 1):
        answer = worker.client.get(
            f"/jobs/{stream.job_id}/events",
            headers={"Last-Event-ID": f"{stream.events[0].incarnation}.{seen}"},
        )
        ids = [line[4:] for line in answer.text.splitlines() if line.startswith("id: ")]
        assert ids == [event.id for event in stream.events[seen + 1 :]]
    unasked = worker.execute(fresh_id(), script(text="ok")).finished()
    assert [event.event for event in unasked.events] == ["started", "token", "token", "end"]


def test_progress_is_received_while_the_prompt_is_computed(worker: RunningWorker) -> None:
    """Not only with the first token."""
    stream = worker.execute(fresh_id(), script(6000, row_ms=1), progress=True)
    stream.wait(lambda s: any(event.event == "progress" for event in s.events), what="progress")
    record = worker.record(stream.job_id)
    assert (record["phase"], record["state"]) == ("prefill", "running")
    worker.cancel(stream.job_id)
    stream.finished().assert_whole()


def test_a_prompt_in_the_cache_is_reported_as_cached(worker: RunningWorker) -> None:
    """There is at least one report, also for a prompt of one step."""
    prompt = script(300, text="ok")
    worker.execute(fresh_id(), prompt).finished()
    again = worker.execute(fresh_id(), prompt, progress=True).finished()
    (reported,) = [event.data for event in again.events if event.event == "progress"]
    assert reported["cached"] == 299
    assert reported["processed"] >= 299


@pytest.mark.parametrize("api", ["chat/completions", "completions"])
def test_return_progress_is_reported_as_llama_server_does(worker: RunningWorker, api: str) -> None:
    """Chunks with `prompt_progress`, before the first text; unasked there are none."""
    for asks in (True, False):
        prompt = long_prompt() if asks else script(text="ok")
        chunks = chunks_of(worker, api, prompt, return_progress=asks)
        progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        assert bool(progress) == asks
        for reported in progress:
            assert list(reported) == ["total", "cache", "processed", "time_ms"]
            assert reported["cache"] < reported["processed"] <= reported["total"]
            assert reported["time_ms"] > 0
        texts = [text_of(chunk) for chunk in chunks]
        assert "".join(texts) == "ok"
        first_text = texts.index("o")
        assert not any("prompt_progress" in chunk for chunk in chunks[first_text:])
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


def chunks_of(worker: RunningWorker, api: str, prompt: str, **more: Any) -> list[dict[str, Any]]:
    """All chunks of a stream."""
    said = {"prompt": prompt} if api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
    answer = worker.client.post(f"/v1/{api}", json={**said, "stream": True, **more})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text_of(chunk: dict[str, Any]) -> str:
    """The text of a chunk."""
    choice = chunk["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))


@pytest.mark.parametrize("way", ["execute", "chat"])
def test_the_client_library_reports_progress(worker: RunningWorker, way: str) -> None:
    """By a callback, as an event, and as an attribute; iteration yields tokens only."""
    reported: list[Progress] = []
    with SyncClient(worker.url) as client:
        said: Any = long_prompt() if way == "execute" else [{"role": "user", "content": long_prompt()}]
        with getattr(client, way)(said, on_progress=reported.append) as job:
            events: list[Event] = list(job.events())
        assert job.text == "ok"
        assert [event.data["processed"] for event in events if event.name == "progress"] == [
            one.processed for one in reported
        ]
        assert job.progress == reported[-1]
        assert 0 < reported[0].processed < reported[0].prompt_tokens
        with client.execute(script(text="ok"), on_progress=reported.append) as job:
            assert [token.text for token in job] == ["o", "k"]


@pytest.mark.parametrize("command", [("execute", long_prompt()), ("chat",)], ids=["execute", "chat"])
def test_a_terminal_shows_progress_until_the_first_token(
    worker: RunningWorker, command: tuple[str, ...]
) -> None:
    """Then the line is erased."""
    with Terminal(worker, *command) as terminal:
        if command == ("chat",):
            terminal.shows("> ")
            terminal.type('{"row_ms": 1, "text": "ok"}' + "y" * 700 + "\n")
        terminal.shows(r"prompt: \d+ of \d+ tokens\rok")
        if command == ("chat",):
            terminal.shows("> ")
            terminal.type("/exit\n")
        assert terminal.ended() == 0
        assert "tokens\r\x1b[Kok" in terminal.raw()
