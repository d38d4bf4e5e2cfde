"""lm-eval (EleutherAI's harness) by its command line: tasks from files, its end in the middle, cancels by others."""

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import accepted, generated, next_job
from tests.clients.puppet import environment
from tests.clients.test_openai_python import SLOW, cancelled, says
from tests.helpers import at_rest
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600), pytest.mark.needs("python-benchmarks")]
Docs = Sequence[dict[str, Any]]
KINDS: dict[str, dict[str, Any]] = {
    "generate_until": {
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 400},
        "metric_list": [{"metric": "exact_match"}],
    },
    "multiple_choice": {"doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"},
}
"""The kinds of tasks: those that generate, and those whose answers' likelihoods are compared."""


def _write_task(folder: Path, kind: str, docs: Docs) -> None:
    lines = "".join(f"{json.dumps(doc)}\n" for doc in docs)
    (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
    task = {
        "task": kind,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{kind}.jsonl")}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        **KINDS[kind],
    }
    (folder / f"{kind}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML.


@contextmanager
def evaluation(
    worker: RunningWorker, folder: Path, tasks: dict[str, Docs], **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """The program while it evaluates tasks. Its tokenizer is the worker's; it cannot reach any hub.

    Args:
        tasks: documents, by the kind of their task.
        options: of its model `local-completions`.
    """
    for kind, docs in tasks.items():
        _write_task(folder, kind, docs)
    there = {"model": worker.health()["model"], "base_url": f"{worker.url}/v1/completions"}
    run = {
        "model": "local-completions",
        "model_args": {**there, **options},
        "tasks": list(tasks),
        "include_path": str(folder),
        "output_path": str(folder / "results"),
        "log_samples": True,
    }
    (folder / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    program = Path(find("python-benchmarks") or "").with_name("lm_eval")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    with subprocess.Popen(
        [program, "run", "--config", "run.yaml"],
        cwd=folder,
        env={**environment(), **offline},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def evaluated(
    worker: RunningWorker, folder: Path, tasks: dict[str, Docs]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What came of each task: its metrics, and what the worker answered to each document, in their order."""
    with evaluation(worker, folder, tasks, num_concurrent=4) as process:
        printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    (results,) = (folder / "results").rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    answers = {}
    for kind in tasks:
        (samples,) = (folder / "results").rglob(f"samples_{kind}_*.jsonl")
        lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
        answers[kind] = [line["resps"] for line in lines]
    return metrics, answers


def scored(worker: RunningWorker, question: str, choice: str) -> tuple[float, bool]:
    """The log probability of a choice, found by having the worker generate it, and whether it would by itself."""
    asked = {"template": "none", "temperature": 0, "prompt": question, "logprobs": 1, "max_tokens": 20}
    forced = {**asked, "job_id": "forced", "grammar": f"root ::= {json.dumps(choice)}"}
    tokens = [event for event in _events(worker, forced) if "t" in event]
    assert "".join(event["t"] for event in tokens) == choice
    number = sum("logprobs" in event for event in tokens)
    free = {**asked, "job_id": "free", "max_tokens": number}
    text = "".join(event["t"] for event in _events(worker, free) if "t" in event)
    return sum(event["logprobs"]["logprob"] for event in tokens if "logprobs" in event), text == choice


def _events(worker: RunningWorker, job: dict[str, Any]) -> list[dict[str, Any]]:
    lines = worker.client.post("/execute", json=job, timeout=120).text.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("data:")]


def assert_scored(worker: RunningWorker, docs: Docs, answers: list[Any]) -> None:
    """Compare what lm-eval made of the worker's `echo` with what the worker generates."""
    for doc, answer in zip(docs, answers, strict=True):
        for choice, ((likelihood, greedy),) in zip(doc["choices"], answer, strict=True):
            expected, by_itself = scored(worker, doc["question"], choice)
            assert float(likelihood) == pytest.approx(expected, rel=1e-3), (doc, choice)
            assert greedy in (by_itself, str(by_itself)), (doc, choice)


def test_it_generates_and_scores(served: RunningWorker, tmp_path: Path) -> None:
    """The first of these documents is answered wrongly. Generation ends where the task says."""
    said = ["Bern", "Oslo", "Rome", "Kyiv"]
    written: Docs = [
        {"question": says(f"{city}\nand more"), "answer": city if number else "Paris"}
        for number, city in enumerate(said)
    ]
    choices: Docs = [{"question": f"{n}?", "choices": ["a", "bc", " d"], "answer": 0} for n in range(2)]
    tasks = {"generate_until": written, "multiple_choice": choices}
    metrics, answers = evaluated(served, tmp_path, tasks)
    assert metrics["generate_until"]["exact_match,none"] == 0.75
    assert answers["generate_until"] == [[[city]] for city in said]
    assert_scored(served, choices, answers["multiple_choice"])


def test_the_bundled_model_is_evaluated(real_worker: RunningWorker, tmp_path: Path) -> None:
    """Its most likely answers are the right ones, and what it generates is what it generates for other clients."""
    countries = {"France": " Paris", "Italy": " Rome", "Germany": " Berlin"}
    choices: Docs = [
        {"question": f"The capital of {country} is", "choices": [*countries.values()], "answer": place}
        for place, country in enumerate(countries)
    ]
    written: Docs = [{"question": doc["question"], "answer": "-"} for doc in choices]
    metrics, answers = evaluated(
        real_worker, tmp_path, {"generate_until": written, "multiple_choice": choices}
    )
    assert metrics["multiple_choice"]["acc,none"] == 1
    assert_scored(real_worker, choices, answers["multiple_choice"])
    for doc, ((answer,),) in zip(written, answers["generate_until"], strict=True):
        asked = {"prompt": doc["question"], "temperature": 0, "max_tokens": 400, "stop": ["\n", "<|im_end|>"]}
        body = real_worker.client.post("/v1/completions", json=asked, timeout=240).json()
        assert answer == body["choices"][0]["text"]


SLOW_TASK: dict[str, Docs] = {"generate_until": [{"question": f"{SLOW}{n}", "answer": "-"} for n in range(6)]}


def _live(worker: RunningWorker, jobs: int) -> list[str]:
    """Wait until so many jobs generate, and return their ids."""
    seen: list[str] = []
    for _ in range(jobs):
        seen.append(next_job(worker, seen))
        generated(worker, seen[-1], 3)
    return seen


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_its_end_stops_its_jobs(served: RunningWorker, tmp_path: Path, end: signal.Signals) -> None:
    """Killed, or by Ctrl-C."""
    before = accepted(served)
    with evaluation(served, tmp_path, SLOW_TASK, num_concurrent=2) as process:
        jobs = _live(served, 2)
        process.send_signal(end)
        for job in jobs:
            assert cancelled(served, job, "disconnect")["phase"] == "decode"
    at_rest(served)
    assert accepted(served) == before + 2


def test_without_retries_one_cancel_ends_it(served: RunningWorker, tmp_path: Path) -> None:
    """It closes the connections of its other requests."""
    with evaluation(served, tmp_path, SLOW_TASK, num_concurrent=2, max_retries=1) as process:
        first, second = _live(served, 2)
        served.cancel(first)
        assert cancelled(served, first, "client")["phase"] == "decode"
        assert cancelled(served, second, "disconnect")["phase"] == "decode"
        printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Job cancelled by client request" in printed


def test_its_retries_of_a_cancelled_request_compute_nothing(served: RunningWorker, tmp_path: Path) -> None:
    """If it names its jobs: it sends the request three times and gives up."""
    before = accepted(served)
    name = {"X-Job-Id": "lm-eval-1"}
    with evaluation(served, tmp_path, SLOW_TASK, num_concurrent=1, header=name) as process:
        generated(served, "lm-eval-1", 3)
        receipt = served.client.post("/cancel", json={"job_id": "lm-eval-1"}, headers={"Prefer": "wait=10"})
        assert receipt.json()["receipt"]["phase"] == "decode"
        printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Job cancelled by client request" in printed
    assert accepted(served) == before + 3
    last = served.record("lm-eval-1")
    assert (last["state"], last["prompt_tokens_processed"], last["tokens_out"]) == ("cancelled", 0, 0)
