"""Requests as sent by programs that the tests do not install, with all settings of their users."""

import json
from typing import Any

import pytest

from tests.clients.test_openai_python import MODEL, says
from worker_orcd.testing.harness import RunningWorker

OPEN_WEBUI: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "max_tokens": 128,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repeat_penalty": 1.1,
    "seed": 42,
    "stop": ["\n\n", "END"],
    "logit_bias": {"65": -100, "66": 1},
    "response_format": {"type": "text"},
    "reasoning_effort": "low",
    "function_calling": "default",
    "user": "anna@example",
}
"""A chat's "advanced parameters", all set, as its OpenAI connection sends them on."""


@pytest.mark.parametrize("stream", [False, True])
def test_open_webui_is_answered_whatever_its_users_set(served: RunningWorker, stream: bool) -> None:
    """Chats are streamed with their usage; titles and tags are complete answers."""
    body = {**OPEN_WEBUI, "stream": stream, "messages": [{"role": "user", "content": says("Hello")}]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = served.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not stream:
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        return
    *chunks, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    texts = [one["delta"].get("content") or "" for chunk in chunks for one in json.loads(chunk)["choices"]]
    assert ("".join(texts), done) == ("Hello", "[DONE]")
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("mirostat", 1), ("tfs_z", 0.5), ("repeat_last_n", 10), ("num_ctx", 4096), ("num_keep", 5)],
)
def test_ollamas_settings_are_ignored_or_refused_by_their_name(
    served: RunningWorker, field: str, value: object
) -> None:
    """Open WebUI sends them if its user adds them. Those that would change the text are refused."""
    body = {**OPEN_WEBUI, field: value, "messages": [{"role": "user", "content": says("Hello")}]}
    answer = served.client.post("/v1/chat/completions", json=body)
    changes = field in ("mirostat", "repeat_last_n", "tfs_z")
    assert answer.status_code == (400 if changes else 200), answer.text
    if changes:
        assert answer.json()["error"]["param"] == field
