"""A hostile or broken chat template in a model file harms neither the worker nor a neighbour's prompt."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import at_rest, fresh_id
from tests.integration.test_renderer import HOSTILE
from tests.tiny import TinyModels
from worker_orcd.supervisor.liveness import PREPARE_SEC
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until


def model(tiny_models: TinyModels, template: str) -> str:
    """The file of a tiny model with this chat template."""
    return str(tiny_models.path("llama", **{"tokenizer.chat_template": template}))


@pytest.fixture(scope="module")
def hostile(tiny_models: TinyModels) -> Iterator[RunningWorker]:
    """A worker whose template is hostile on a certain word."""
    with running_worker("llama", wait=False, model=model(tiny_models, HOSTILE), parallel=4) as worker:
        yield worker.ready(within_sec=60)
        at_rest(worker)
        assert worker.health()["engine_restarts"] == 0


def refused(stream: Stream) -> dict[str, Any]:
    """With an error that clients do not retry: a 400, or an event of the stream if rendering took over a second."""
    stream.finished(within_sec=90)
    error = stream.refusal or (stream.terminal.data if stream.terminal else {})
    assert (error["code"], error["retriable"]) == ("INVALID_REQUEST", False)
    assert "chat template" in error["message"]
    assert not stream.text
    return error


@pytest.mark.parametrize("word", ["time", "power", "slice", "double", "center", "format", "write"])
def test_a_prompt_that_makes_a_template_harmful_is_refused(hostile: RunningWorker, word: str) -> None:
    """Once, without a retry, and without killing the engine."""
    refused(hostile.execute(fresh_id(), word, max_tokens=2))
    assert hostile.execute(fresh_id(), "hi", max_tokens=2).finished().terminal is not None


def test_a_whole_answer_is_a_400(hostile: RunningWorker) -> None:
    """However long rendering takes."""
    body = {"messages": [{"role": "user", "content": "time"}], "max_tokens": 2}
    answer = hostile.client.post("/v1/chat/completions", json=body, timeout=90)
    assert answer.status_code == 400, answer.text
    assert "takes too long" in answer.json()["error"]["message"]


def test_harmful_prompts_hold_up_no_neighbour(hostile: RunningWorker) -> None:
    """Prompts that come after three slow ones are answered while those are still being rendered."""
    slow = [hostile.execute(fresh_id(), "time", max_tokens=2) for _ in range(3)]
    neighbour = hostile.execute(fresh_id(), "hi", max_tokens=2).finished(within_sec=60)
    assert neighbour.terminal is not None
    assert neighbour.terminal.event == "end"
    # Rendered one after the other, all of them would have ended before.
    assert any(stream.terminal is None for stream in slow)
    for stream in slow:
        refused(stream)


def test_a_prompt_can_be_cancelled_while_it_is_being_rendered(hostile: RunningWorker) -> None:
    """Like any other waiting job."""
    job_id = fresh_id()
    stream = hostile.execute(job_id, "time", max_tokens=2)
    receipt: list[int] = []
    thread = threading.Thread(target=lambda: receipt.append(hostile.cancel(job_id).status_code))
    thread.start()
    thread.join()
    stream.finished(within_sec=60)
    assert receipt == [202]


def _computing(renderer: psutil.Process) -> psutil.Process | None:
    """A child that renders, and has for a while: one that has just answered may still be ending."""
    for child in renderer.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if sum(child.cpu_times()[:2]) > 0.05:
                return child
    return None


def test_rendering_ends_with_the_job(hostile: RunningWorker) -> None:
    """The process of a cancelled prompt is killed."""
    engine = psutil.Process(hostile.health()["engine_pid"])
    [renderer] = engine.children()
    stream = hostile.execute(fresh_id(), "time", max_tokens=2)
    child: psutil.Process = wait_until(
        lambda: _computing(renderer), within_sec=30, what="a child that computes"
    )
    child.suspend()  # So that it cannot end by itself.
    hostile.cancel(stream.job_id)
    stream.finished(within_sec=60)
    child.resume()
    _, alive = psutil.wait_procs([child], timeout=1)
    assert not alive


def test_a_prompt_that_gets_no_cpu_costs_nobody_the_engine(hostile: RunningWorker) -> None:
    """The engine waits for a process that has limits of its own. That is no reason to kill it, however busy the machine
    is: here the process gets no CPU at all, and four of them hold up no fifth."""
    engine = psutil.Process(hostile.health()["engine_pid"])
    [renderer] = engine.children()
    neighbour = hostile.execute(fresh_id(), "hi", template="none", ignore_eos=True, max_tokens=200)
    neighbour.tokens_seen(1)
    slow = [hostile.execute(fresh_id(), "time", max_tokens=2) for _ in range(4)]
    wait_until(lambda: len(renderer.children()) == len(slow), within_sec=60, what="children that render")
    for child in renderer.children():
        child.suspend()
    with pytest.raises(TimeoutError):
        wait_until(
            lambda: hostile.health()["engine_pid"] != engine.pid,
            within_sec=1.3 * PREPARE_SEC,
            what="another engine",
        )
    fifth = hostile.execute(fresh_id(), "hi", max_tokens=2).finished(within_sec=60)
    assert fifth.terminal is not None
    assert fifth.terminal.event == "end"
    assert all(stream.terminal is None for stream in slow)
    for stream in slow:
        hostile.cancel(stream.job_id)
        stream.finished(within_sec=60)
    for child in renderer.children():
        child.resume()
    neighbour.finished(within_sec=60).assert_whole()
    assert len(neighbour.tokens) == 200


def test_a_tenants_slow_prompts_hold_up_no_other_tenant(tiny_models: TinyModels, tmp_path: Path) -> None:
    """One tenant sends a hundred, which take 2 s of CPU time each. Another tenant's prompts do not wait for them."""
    anna, berta = ({"Authorization": f"Bearer {name * 32}"} for name in "ab")
    keys = tmp_path / "keys"
    keys.write_text("a" * 32 + "\n" + "b" * 32 + "\n")
    file = model(tiny_models, HOSTILE)
    with running_worker("llama", model=file, parallel=4, api_key_file=str(keys)) as worker:
        body = {"prompt": "time", "max_tokens": 2}
        slow = [Stream(worker, {"job_id": fresh_id(), **body}, anna) for _ in range(100)]
        wait_until(lambda: worker.health()["jobs_queued"] >= 90, within_sec=60, what="most of them")
        for _ in range(3):
            quick = Stream(worker, {"job_id": fresh_id(), "prompt": "hi", "max_tokens": 2}, berta)
            quick.finished(within_sec=60)
            assert quick.terminal is not None
            assert quick.terminal.event == "end"
        assert sum(stream.terminal is None and stream.refusal is None for stream in slow) > 80


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 s of CPU time"),
        *(
            pytest.param(template, reason, marks=pytest.mark.nightly)
            for template, reason in (
                ("{{ 'a' * 10 ** 9 }}", "too much memory"),
                ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "SyntaxError"),
                ("{% if a %}" * 5000, "RecursionError"),
                (f"{{{{ {'9' * 6000} }}}}", "ValueError"),
            )
        ),
        ("{{ raise_exception('\x1b[31mno') }}", r"\x1b[31mno"),
    ],
)
def test_a_broken_template_leaves_raw_prompts(tiny_models: TinyModels, template: str, reason: str) -> None:
    """The worker becomes healthy, says what is wrong, and serves `template: none`.

    `test_renderer.py` tries all these templates without a worker.
    """
    file = model(tiny_models, template + "{{ messages[0].content }}")
    with running_worker("llama", wait=False, model=file, parallel=2) as worker:
        worker.ready(within_sec=60)
        assert worker.health()["engine_restarts"] == 0
        stream = worker.execute(fresh_id(), "hi", max_tokens=2)
        error = refused(stream)
        assert reason in error["message"]
        assert error["param"] == "template"
        raw = worker.execute(fresh_id(), "hi", template="none", max_tokens=2).finished()
        assert raw.terminal is not None
        assert raw.terminal.event == "end"


def test_a_killed_engine_leaves_no_renderer(tiny_models: TinyModels) -> None:
    """Not even one in the middle of a template."""
    with running_worker("llama", wait=False, model=model(tiny_models, HOSTILE), parallel=2) as worker:
        worker.ready(within_sec=60)
        engine = psutil.Process(worker.health()["engine_pid"])
        [renderer] = engine.children()
        stream = worker.execute(fresh_id(), "time", max_tokens=2)
        wait_until(lambda: bool(renderer.children()), within_sec=30, what="a child that renders")
        processes = [renderer, *renderer.children()]
        engine.kill()
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert not alive
        refused(stream)
