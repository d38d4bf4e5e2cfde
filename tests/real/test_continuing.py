"""A message that the real model continues, and what the real tokenizer says of itself."""

from typing import Any

from worker_orcd.testing.harness import RunningWorker

TALK = [
    {"role": "user", "content": "Count from one to ten, in digits."},
    {"role": "assistant", "content": "1, 2, 3, 4,"},
]
OPEN = {"messages": TALK, "continue_final_message": True}


def test_a_message_is_continued_where_it_ends(real_worker: RunningWorker) -> None:
    """The answer is what follows the text of the prompt; without the field the model begins a new message."""

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = real_worker.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    prompt = post("/apply-template", OPEN)["prompt"]
    assert prompt.endswith("assistant\n1, 2, 3, 4,")
    greedy = {"temperature": 0, "max_tokens": 8}
    chat = post("/v1/chat/completions", {**OPEN, **greedy})
    tokens = post("/tokenize", OPEN)["tokens"]
    (choice,) = post("/v1/completions", {"prompt": tokens, **greedy})["choices"]
    assert chat["choices"][0]["message"]["content"] == choice["text"]
    assert chat["usage"]["prompt_tokens"] == len(tokens)
    assert choice["text"].startswith(" 5,")


def test_an_assistants_last_message_is_continued_as_anthropics_api_does_it(
    real_worker: RunningWorker,
) -> None:
    """Without any field that asks for it; it is counted as it is continued."""
    asked = {"messages": TALK, "max_tokens": 8, "temperature": 0}
    body = real_worker.client.post("/v1/messages", json=asked).json()
    assert body["content"][0]["text"].startswith(" 5,")
    counted = real_worker.client.post("/v1/messages/count_tokens", json={"messages": TALK}).json()
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted["input_tokens"]
    assert counted["input_tokens"] == len(real_worker.client.post("/tokenize", json=OPEN).json()["tokens"])


def test_the_real_tokenizers_end_is_one_token(real_worker: RunningWorker) -> None:
    """lm-eval takes it for the context of an empty prompt."""
    end = real_worker.client.get("/tokenizer_info").json()["eos_token"]
    body = {"prompt": end, "add_special_tokens": False}
    assert len(real_worker.client.post("/tokenize", json=body).json()["tokens"]) == 1
