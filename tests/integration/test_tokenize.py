"""`POST /tokenize`, `/detokenize` and `/apply-template`, as llama-server's and vLLM's clients use them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from worker_orcd.testing.harness import RunningWorker

USER = {"role": "user", "content": "hi"}
BOTH_ENDS = {"add_generation_prompt": True, "continue_final_message": True}


def ask(worker: RunningWorker, path: str, body: dict[str, Any]) -> httpx2.Response:
    """Any of them."""
    return worker.client.post(path, json=body)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ({"content": "hé"}, {}),
        ({"prompt": "hé", "model": "any", "add_special_tokens": False}, {}),
        ({"prompt": "hé", "return_token_strs": True}, {"token_strs": ["h", "bytes:\\xc3", "bytes:\\xa9"]}),
    ],
    ids=str,
)
def test_a_text_becomes_tokens(
    scripted_worker: RunningWorker, body: dict[str, Any], more: dict[str, Any]
) -> None:
    """With the fields of either server."""
    answer = ask(scripted_worker, "/tokenize", body)
    expected = {"tokens": [104, 0xC3, 0xA9], "count": 3, "max_model_len": 8192}
    assert (answer.status_code, answer.json()) == (200, expected | more)


def test_tokens_come_with_their_pieces(scripted_worker: RunningWorker) -> None:
    """A piece is text, or bytes if it is part of a character."""
    answer = ask(scripted_worker, "/tokenize", {"content": "hé", "with_pieces": True}).json()
    pieces = [("h", 104), ([0xC3], 0xC3), ([0xA9], 0xA9)]
    assert answer["tokens"] == [{"id": token, "piece": piece} for piece, token in pieces]


def test_no_text_has_no_tokens(scripted_worker: RunningWorker) -> None:
    """As llama-server answers it."""
    assert ask(scripted_worker, "/tokenize", {"content": ""}).json()["tokens"] == []
    assert ask(scripted_worker, "/detokenize", {"tokens": []}).json() == {"content": "", "prompt": ""}


def test_tokens_become_text_again(scripted_worker: RunningWorker) -> None:
    """Also characters of several tokens, and the names of control tokens."""
    answer = ask(scripted_worker, "/detokenize", {"tokens": [104, 0xC3, 0xA9, 256]})
    assert (answer.status_code, answer.json()) == (200, {"content": "hé<end>", "prompt": "hé<end>"})


def test_a_conversation_becomes_the_prompt_that_the_model_reads(scripted_worker: RunningWorker) -> None:
    """The same for both resources."""
    body = {"messages": [USER, {"role": "assistant", "content": "yes"}]}
    prompt = ask(scripted_worker, "/apply-template", body).json()["prompt"]
    tokens = ask(scripted_worker, "/tokenize", body).json()["tokens"]
    assert prompt == "yes\nhi"  # The scripted engine puts the latest message first.
    assert ask(scripted_worker, "/detokenize", {"tokens": tokens}).json()["content"] == prompt


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "prompt"),
        ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "a", "parse_special": False}, "parse_special"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [50_000]}, "tokens"),
        ("/apply-template", {"messages": [{"role": "robot", "content": "a"}]}, "messages"),
        ("/apply-template", {"messages": [USER], **BOTH_ENDS}, "continue_final_message"),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused_by_its_field(
    scripted_worker: RunningWorker, path: str, body: dict[str, Any], param: str
) -> None:
    """In the usual shape of errors."""
    answer = ask(scripted_worker, path, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert answer.json()["error"]["param"] == param


def test_the_tokenizer_is_described(scripted_worker: RunningWorker) -> None:
    """As lm-eval asks for it before it counts tokens by `/tokenize`; a tokenizer may have no such tokens."""
    answer = scripted_worker.client.get("/tokenizer_info")
    assert (answer.status_code, answer.json()) == (
        200,
        {"tokenizer_class": "bytes", "bos_token": None, "eos_token": None, "model_max_length": 8192},
    )


def test_many_at_once_are_answered_or_refused(scripted_worker: RunningWorker) -> None:
    """Each answer has its own tokens; a few requests wait, the others get 429."""

    def one(number: int) -> httpx2.Response:
        return ask(scripted_worker, "/tokenize", {"content": f"{number:03}"})

    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(one, range(64)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert any(answer.status_code == 200 for answer in answers)
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["tokens"] == list(f"{number:03}".encode())
        else:
            assert answer.headers["retry-after"]
