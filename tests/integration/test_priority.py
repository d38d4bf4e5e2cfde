"""`priority`: an urgent job preempts a running one, whose stream shows a pause only."""

from typing import Any

import pytest

from tests.helpers import ended_state, fresh_id, in_prefill, script, undisturbed
from worker_orcd.testing.harness import RunningWorker


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_an_urgent_job_preempts_a_running_one_which_continues(narrow: RunningWorker, phase: str) -> None:
    """With one slot: the urgent job gets it at once, then the other one continues where it was."""
    if phase == "prefill":
        victim = narrow.execute(fresh_id(), script(1500, row_ms=0.5), priority=1, max_tokens=5)
        victim.wait(lambda stream: stream.status is not None)
        in_prefill(narrow, victim)
    else:
        victim = narrow.execute(fresh_id(), script(token_ms=5), priority=1, max_tokens=80).tokens_seen(3)
    urgent = narrow.execute(fresh_id(), script(text="urgent")).finished()
    assert urgent.text == "urgent"
    assert narrow.record(victim.job_id)["state"] in ("queued", "running")
    victim.finished().assert_whole()
    tokens = 5 if phase == "prefill" else 80
    assert victim.events[-1].data["tokens_out"] == tokens
    record: Any = ended_state(narrow, victim.job_id)
    assert (record["requeues"], record["priority"]) == (1, 1)
    again = narrow.execute(fresh_id(), script(token_ms=0), max_tokens=3, temperature=0).finished()
    assert again.text == undisturbed(3)


@pytest.mark.parametrize("api", ["chat/completions", "completions", "responses"])
def test_openais_api_takes_a_priority(worker: RunningWorker, api: str) -> None:
    """As vLLM's does."""
    prompt = script(text="ok")
    said: dict[str, Any] = {
        "chat/completions": {"messages": [{"role": "user", "content": prompt}]},
        "completions": {"prompt": prompt},
        "responses": {"input": prompt},
    }
    answer = worker.client.post(f"/v1/{api}", json={**said[api], "priority": -2})
    assert answer.status_code == 200
    assert worker.record(answer.headers["x-job-id"])["priority"] == -2
