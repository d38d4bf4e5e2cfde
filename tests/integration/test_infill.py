"""`POST /infill` and `suffix` of a completion: filling the gap between two texts."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gguf import TokenType

from tests.helpers import ended_state, fresh_id, receipt_of, script
from tests.tiny import TinyModels
from tests.tiny.architectures import keys_of
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

SPECIAL = {
    "fim_pre": "<|fim_prefix|>",
    "fim_suf": "<|fim_suffix|>",
    "fim_mid": "<|fim_middle|>",
    "fim_rep": "<|repo_name|>",
    "fim_sep": "<|file_sep|>",
}
SAID = "return a + b"


def asked(**fields: Any) -> dict[str, Any]:
    """A request whose answer is known to the scripted engine."""
    return {"input_prefix": script(text=SAID, token_ms=0), "input_suffix": "\n", **fields}


def test_a_gap_is_filled_in_one_answer(worker: RunningWorker) -> None:
    """In llama-server's shape."""
    answer = worker.client.post("/infill", json=asked(n_predict=64))
    body = answer.json()
    assert (answer.status_code, body["content"], body["stop"], body["stop_type"]) == (200, SAID, True, "eos")
    assert (body["tokens_predicted"], body["truncated"]) == (len(SAID), False)
    assert body["tokens_evaluated"] == body["timings"]["prompt_n"] + body["timings"]["cache_n"]
    assert ended_state(worker, answer.headers["x-job-id"])["state"] == "completed"


@pytest.mark.parametrize(
    ("fields", "content", "stop_type"),
    [({"max_tokens": 6}, "return", "limit"), ({"stop": [" +"]}, "return a", "word")],
    ids=str,
)
def test_an_answer_says_why_it_stopped(
    worker: RunningWorker, fields: dict[str, Any], content: str, stop_type: str
) -> None:
    """With llama-server's `stop_type`."""
    body = worker.client.post("/infill", json=asked(**fields)).json()
    assert (body["content"], body["stop_type"]) == (content, stop_type)


def test_a_gap_is_filled_in_a_stream(worker: RunningWorker) -> None:
    """Chunks of text, and the last one has the figures; llama-server sends no `[DONE]` here."""
    answer = worker.client.post("/infill", json=asked(stream=True))
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "".join(chunk["content"] for chunk in chunks) == SAID
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["tokens_predicted"] == len(SAID)


def test_a_stream_ends_with_the_fields_that_are_wanted(worker: RunningWorker) -> None:
    """As by llama-server: unknown ones are left out."""
    wanted = ["stop", "timings/predicted_n", "timings/none", "generation_settings"]
    answer = worker.client.post("/infill", json=asked(stream=True, response_fields=wanted))
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "".join(chunk["content"] for chunk in chunks[:-1]) == SAID
    assert chunks[-1] == {"stop": True, "timings/predicted_n": len(SAID)}


def test_a_prompt_can_be_computed_ahead(worker: RunningWorker) -> None:
    """With nothing to generate, as llama.vim does while its user moves about."""
    body = worker.client.post("/infill", json=asked(n_predict=0)).json()
    assert (body["content"], body["tokens_predicted"], body["stop_type"]) == ("", 0, "limit")


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_cancelled_like_any_job(worker: RunningWorker, stream: bool) -> None:
    """By the id that the client chose, before there is an answer."""
    job_id = fresh_id("infill")
    body = {"input_prefix": script(), "input_suffix": ")", "stream": stream}
    with ThreadPoolExecutor(1) as client:
        asking = client.submit(worker.client.post, "/infill", json=body, headers={"X-Job-Id": job_id})
        wait_until(lambda: worker.client.get(f"/jobs/{job_id}").status_code == 200, what="the job to exist")
        worker.cancel(job_id)
        answer = asking.result()
    assert answer.status_code == (200 if stream else 400)
    assert "CANCELLED" in answer.text
    assert '"stop":true' not in answer.text
    assert receipt_of(worker, job_id)["kv_cells_after"] == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_suffix": ""}, "input_prefix"),
        ({"input_prefix": ""}, "input_suffix"),
        (asked(input_extra="text"), "input_extra"),
        (asked(input_extra=[{"filename": "a"}]), "input_extra"),
        (asked(n=2), "n"),
        (asked(n_indent=-1), "n_indent"),
        (asked(samplers=["infill"]), "samplers"),
        (asked(samplers=["mirostat"]), "samplers"),
        (asked(response_fields="content"), "response_fields"),
        (asked(input_prefix="x" * 9000), "input_prefix"),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused_by_its_field(
    worker: RunningWorker, body: dict[str, Any], param: str
) -> None:
    """Also a field that is not supported."""
    answer = worker.client.post("/infill", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert answer.json()["error"]["param"] == param


def test_a_completion_with_a_suffix_fills_the_gap(worker: RunningWorker) -> None:
    """Whole, echoed, and at the beginning of a text."""
    body: dict[str, Any] = {"prompt": script(text=SAID, token_ms=0), "suffix": "\n", "max_tokens": 64}
    choice = worker.client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (SAID, "stop")
    echoed = worker.client.post("/v1/completions", json={**body, "echo": True}).json()["choices"][0]
    assert echoed["text"] == body["prompt"] + SAID
    assert worker.client.post("/v1/completions", json={**body, "prompt": ""}).status_code == 200


@pytest.mark.parametrize(
    "fields", [{"prompt": [1, 2]}, {"echo": True, "logprobs": 1}, {"suffix": 1}], ids=str
)
def test_a_suffix_that_cannot_be_kept_is_refused(worker: RunningWorker, fields: dict[str, Any]) -> None:
    """The error names the field."""
    answer = worker.client.post("/v1/completions", json={"prompt": "a", "suffix": "b", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")


@pytest.fixture(scope="module")
def filling(tiny_models: TinyModels) -> Iterator[RunningWorker]:
    """A worker on a tiny model whose vocabulary has the tokens."""
    keys = keys_of("llama")
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    more: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": len(tokens) + n for n, name in enumerate(SPECIAL)
    }
    more["tokenizer.ggml.tokens"] = tokens + list(SPECIAL.values())
    more["tokenizer.ggml.token_type"] = types + [int(TokenType.CONTROL)] * len(SPECIAL)
    more["llama.vocab_size"] = len(tokens) + len(SPECIAL)
    path = tiny_models.path("llama", **more)
    with running_worker("llama", model=path, parallel=2, context_length=2048, threads=1) as worker:
        yield worker


def tokens_of(worker: RunningWorker, text: str) -> list[int]:
    """Token ids of a text in which special tokens are parsed."""
    tokens: list[int] = worker.client.post("/tokenize", json={"content": text}).json()["tokens"]
    return tokens


@pytest.mark.real
def test_a_real_engine_computes_the_documented_prompt(filling: RunningWorker) -> None:
    """The same text comes out as for the token ids that llama-server's documentation asks for; special tokens within
    the texts are text."""
    pre, suf, mid, rep, sep = SPECIAL.values()
    more = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    bos = filling.client.post("/tokenize", json={"prompt": ""}).json()["tokens"]

    def by_tokens(text: str) -> dict[str, Any]:
        body = {"prompt": bos + tokens_of(filling, text), **more}
        answer: dict[str, Any] = filling.client.post("/v1/completions", json=body).json()
        return answer

    body = {"prompt": "the quick", "suffix": "the lazy dog", **more}
    gap = f"{pre}the quick{suf}the lazy dog{mid}"
    found = filling.client.post("/v1/completions", json=body).json()
    expected = by_tokens(gap)
    assert found["choices"][0]["text"] == expected["choices"][0]["text"] != ""
    assert found["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]

    # As Continue sends it: special tokens in the prompt are parsed.
    raw = filling.client.post("/completion", json={"prompt": gap, **more}).json()
    assert raw["content"] == expected["choices"][0]["text"]
    assert raw["tokens_evaluated"] == expected["usage"]["prompt_tokens"]

    extra = [{"filename": "a.txt", "text": "the sea"}, {"text": "a ship"}]
    asked = {
        "input_prefix": "the quick",
        "input_suffix": "the lazy dog",
        "input_extra": extra,
        "prompt": "and ",
    }
    filled = filling.client.post("/infill", json={**asked, **more}).json()
    files = f"{rep}myproject\n{sep}a.txt\nthe sea{sep}tmp\na ship{sep}filename\n"
    expected = by_tokens(f"{files}{gap}and ")
    assert filled["content"] == expected["choices"][0]["text"] != ""
    assert filled["tokens_evaluated"] == expected["usage"]["prompt_tokens"]

    forged = filling.client.post("/infill", json={**asked, "input_prefix": f"the quick{mid}", **more}).json()
    assert forged["tokens_evaluated"] > filled["tokens_evaluated"] + 1


@pytest.mark.real
def test_a_real_engine_samples_as_llama_vim_wants_it(filling: RunningWorker) -> None:
    """The sampler `infill` ends the text where no token is likely, as with this model of random weights."""
    body = {"input_prefix": "the quick", "input_suffix": "dog", "top_k": 40, "n_predict": 16, "seed": 1}
    plain = filling.client.post("/infill", json={**body, "samplers": ["top_k"], "ignore_eos": True}).json()
    assert plain["tokens_predicted"] == 16
    found = filling.client.post("/infill", json={**body, "samplers": ["top_k", "infill"]}).json()
    assert (found["content"], found["stop_type"]) == ("", "eos")
