"""Requests as sent by programs that the tests do not install, with all settings of their users."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from tests.clients.conftest import generated
from tests.clients.test_openai_python import MODEL, SLOW, cancelled, says
from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker

OPEN_WEBUI: dict[str, Any] = {
    "model": MODEL,
    "seed": 0,
    "stop": ["\n\n", "END"],
    "temperature": 0.8,
    "reasoning_effort": "medium",
    "logit_bias": {"65": -100, "66": 1},
    "max_tokens": 128,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "frequency_penalty": 1.1,
    "presence_penalty": 0.0,
    "mirostat": 0,
    "mirostat_eta": 0.1,
    "mirostat_tau": 5.0,
    "repeat_last_n": 64,
    "tfs_z": 1,
    "repeat_penalty": 1.1,
    "use_mmap": True,
    "use_mlock": True,
    "think": True,
    "keep_alive": "5m",
    "num_keep": 24,
    "num_ctx": 2048,
    "num_batch": 512,
    "num_thread": 2,
    "num_gpu": 0,
    "response_format": {"type": "text"},
}
"""A chat's "advanced parameters", each with the value that it has once its user switches it on, and a custom one. Its
OpenAI connection sends on all but the page's own ones (`AdvancedParams.svelte` of open-webui/open-webui at 02530d5014,
with `utils/payload.py`). `format` is left out: it is refused."""
OPEN_WEBUI_USER: dict[str, str] = {
    "X-OpenWebUI-User-Name": "Anna%20B",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "anna@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "7",
}
"""The headers that it adds if its operator wants that."""
OPEN_WEBUI_TASK: dict[str, Any] = {"model": MODEL, "stream": False, "max_tokens": 1000}
"""How it asks for a chat's title; for tags and follow-ups without a limit (`routers/tasks.py`)."""


def open_webui(prompt: str, *, stream: bool = True) -> dict[str, Any]:
    """A request of one of its chats."""
    body = {**OPEN_WEBUI, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
    return {**body, "stream_options": {"include_usage": True}} if stream else body


@pytest.mark.parametrize("stream", [False, True])
def test_open_webui_is_answered_whatever_its_users_set(served: RunningWorker, stream: bool) -> None:
    """Chats are streamed with their usage, unless their user says otherwise."""
    body = open_webui(says("Hello"), stream=stream)
    answer = served.client.post("/v1/chat/completions", json=body, headers=OPEN_WEBUI_USER)
    assert answer.status_code == 200, answer.text
    if not stream:
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        return
    *chunks, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    texts = [one["delta"].get("content") or "" for chunk in chunks for one in json.loads(chunk)["choices"]]
    assert ("".join(texts), done) == ("Hello", "[DONE]")
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] == 5


def test_open_webui_gets_a_title(served: RunningWorker) -> None:
    """And whatever else it asks for beside a chat."""
    body = {**OPEN_WEBUI_TASK, "messages": [{"role": "user", "content": says('{"title": "Sea"}')}]}
    answer = served.client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == '{"title": "Sea"}'


@pytest.mark.parametrize("most", [-2, -1, 131_072])
def test_open_webui_may_set_any_limit_of_its_slider(served: RunningWorker, most: int) -> None:
    """Ollama's -1 and -2 are none."""
    body = {**open_webui(says("x" * 40), stream=False), "max_tokens": most}
    choice = served.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (len(choice["message"]["content"]), choice["finish_reason"]) == (40, "stop")


@pytest.mark.parametrize(
    ("field", "value"),
    [("mirostat", 1), ("tfs_z", 0.5), ("repeat_last_n", 10), ("format", "json")],
)
def test_ollamas_settings_that_would_change_the_text_are_refused_by_their_name(
    served: RunningWorker, field: str, value: object
) -> None:
    """Open WebUI sends them if its user sets them; `OPEN_WEBUI` has those that are ignored."""
    body = {**open_webui(says("Hello")), field: value}
    answer = served.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


LLAMA_VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "\n",
    "input_extra": [
        {"text": "import os\n", "time": [1, 2], "filename": "a.py"},
        {"text": "import re\n", "time": [1, 3], "filename": "b.py"},
    ],
    "prompt": "    ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
    "model": MODEL,
}
"""What llama.vim sends when its user types; llama.vscode sends the same fields."""
LLAMA_VIM_AHEAD: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": LLAMA_VIM["input_extra"],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "samplers": [],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}
"""What it sends when its user yanks, saves or opens a file: only the prompt is computed."""
CONTINUE: dict[str, Any] = {
    "model": MODEL,
    "stream": True,
    "n_predict": 4096,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stop": ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "/src/", "#- coding: utf-8", "```"],
    "temperature": 0.01,
}
"""What its provider `llama.cpp` sends to `/completion`, with a prompt in which special tokens mark the gap."""
CONTINUE_OPENAI: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 4096,
    "temperature": 0.01,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stream": True,
    "stop": CONTINUE["stop"],
}
"""What its providers `openai` and `vllm` send to `/v1/completions`, with the same prompt (`core/llm/llms/OpenAI.ts` and
`core/llm/openaiTypeConverters.ts` of continuedev/continue at d0a3c0b626)."""
EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama.vim": ("/infill", {**LLAMA_VIM, "input_prefix": SLOW}),
    "continue": ("/completion", {**CONTINUE, "prompt": SLOW}),
    "continue-openai": ("/v1/completions", {**CONTINUE_OPENAI, "prompt": SLOW}),
    "open-webui": ("/v1/chat/completions", open_webui(SLOW)),
    "open-webui-title": (
        "/v1/chat/completions",
        {**OPEN_WEBUI_TASK, "messages": [{"role": "user", "content": SLOW}]},
    ),
}
"""The path and the body of a slow request of each."""
each_request = pytest.mark.parametrize(("path", "body"), EDITORS.values(), ids=EDITORS)


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream of llama-server's."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("return a + b", "return a + b"),
        ("if a:\n        return b\n    return c\n\ndef f", "if a:\n        return b\n    return c\n"),
    ],
)
def test_llama_vim_gets_its_suggestion(served: RunningWorker, text: str, kept: str) -> None:
    """With the figures that it shows, and without the lines behind the block."""
    answer = served.client.post("/infill", json={**LLAMA_VIM, "input_prefix": says(text)})
    body = answer.json()
    assert (answer.status_code, body["content"], body["truncated"]) == (200, kept, False)
    assert list(body) == LLAMA_VIM["response_fields"]
    assert body["timings/predicted_n"] == len(kept) + (text != kept)
    assert body["timings/prompt_n"] > 0 < body["timings/prompt_per_second"]


def test_llama_vim_computes_ahead(served: RunningWorker) -> None:
    """The files of a later request, of which nothing is reported; and the conversation of an instruction."""
    answer = served.client.post("/infill", json=LLAMA_VIM_AHEAD)
    assert (answer.status_code, answer.json()) == (200, {})
    chat: dict[str, Any] = {
        "id_slot": 1,
        "messages": [{"role": "user", "content": says("done")}],
        "cache_prompt": True,
    }
    ahead = {**chat, "samplers": [], "n_predict": 0, "stream": False, "response_fields": [""]}
    answer = served.client.post("/v1/chat/completions", json=ahead)
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 0), answer.text
    sent = {**chat, "min_p": 0.1, "temperature": 0.1, "samplers": ["min_p", "temperature"], "stream": True}
    answer = served.client.post("/v1/chat/completions", json=sent)
    texts = [one["choices"][0]["delta"].get("content") or "" for one in chunks_of_chat(answer)]
    assert "".join(texts) == "done"


def chunks_of_chat(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream of OpenAI's, without its end."""
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_suggestion_ends_with_a_line_once_its_time_is_over(served: RunningWorker) -> None:
    """`t_max_predict_ms`: not before a line break; without one the text goes on."""
    asked = {**LLAMA_VIM, "n_indent": 0, "t_max_predict_ms": 1, "response_fields": ["content", "stop_type"]}
    for text, kept in (("ab\ncd\n", "ab\n"), ("abcd", "abcd")):
        answer = served.client.post("/infill", json={**asked, "input_prefix": says(text)})
        assert answer.json() == {"content": kept, "stop_type": "eos" if text == kept else "limit"}


def test_continue_gets_its_completion(served: RunningWorker) -> None:
    """It reads the `content` of each chunk."""
    answer = served.client.post("/completion", json={**CONTINUE, "prompt": says("a + b")})
    chunks = chunks_of(answer)
    assert "".join(chunk["content"] for chunk in chunks) == "a + b"
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    whole = served.client.post("/completions", json={**CONTINUE, "prompt": says("a + b"), "stream": False})
    assert whole.json()["content"] == "a + b"


def test_continue_gets_its_completion_by_openais_api_too(served: RunningWorker) -> None:
    """It reads the `text` of each choice."""
    asked = {**CONTINUE_OPENAI, "prompt": says("a + b")}
    answer = served.client.post("/v1/completions", json=asked)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks_of_chat(answer)) == "a + b"
    whole = served.client.post("/v1/completions", json={**asked, "stream": False})
    assert whole.json()["choices"][0]["text"] == "a + b"


@each_request
def test_a_user_who_goes_on_typing_or_clicks_on_stop_stops_the_request(
    served: RunningWorker, path: str, body: dict[str, Any]
) -> None:
    """The program closes the connection."""
    job_id, raw = fresh_id("typing"), json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Job-Id: {job_id}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + raw)
        generated(served, job_id, 3)
    assert cancelled(served, job_id, "disconnect")["phase"] == "decode"


@each_request
def test_such_a_request_is_cancelled_from_elsewhere(
    served: RunningWorker, path: str, body: dict[str, Any]
) -> None:
    """The program gets the error, and no last chunk that says it is whole."""
    job_id = fresh_id("elsewhere")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served.client.post, path, json=body, headers={"X-Job-Id": job_id})
        generated(served, job_id, 3)
        served.cancel(job_id)
        answer = asking.result()
    assert answer.status_code == (200 if body["stream"] else 400)
    assert "CANCELLED" in answer.text
    for end in ('"stop":true', "[DONE]", '"finish_reason":"'):
        assert end not in answer.text
    assert cancelled(served, job_id, "client")["phase"] == "decode"
