"""NVIDIA's AIPerf, which measures a worker and cancels a part of its own requests."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import accepted
from tests.clients.puppet import environment
from tests.clients.test_openai_python import cancelled
from tests.clients.tokenizer import write_tokenizer
from tests.helpers import at_rest, script
from tests.programs import find
from worker_orcd.testing.harness import RunningWorker

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900), pytest.mark.needs("python-benchmarks")]
REQUESTS = 12
TOKENIZER, REVISION = "local/bundled", "0" * 40


def measured(
    worker: RunningWorker, folder: Path, *options: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of all requests, and the figures, of a run in which four of ten requests are cancelled after half a
    second. It cannot reach any hub: the tokenizer lies where downloads are kept, because AIPerf takes no other folder
    when it is offline."""
    home = folder / "hub/models--local--bundled"
    write_tokenizer(home / "snapshots" / REVISION)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(REVISION)
    program = Path(find("python-benchmarks") or "").with_name("aiperf")
    said = {
        "--model": worker.health()["model"],
        "--url": worker.url,
        "--tokenizer": TOKENIZER,
        "--endpoint-type": "chat",
        "--concurrency": "3",
        "--request-count": str(REQUESTS),
        "--request-cancellation-rate": "40",
        "--request-cancellation-delay": "0.5",
        "--random-seed": "3",
        "--ui-type": "none",
        "--output-artifact-dir": str(folder / "results"),
    }
    command = [str(program), "profile", *(part for pair in said.items() for part in pair)]
    flags = ["--streaming", "--no-gpu-telemetry", "--use-server-token-count"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    ran = subprocess.run(
        [*command, *flags, *options],
        cwd=folder,
        env={**environment(), **offline},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    lines = (folder / "results/profile_export.jsonl").read_text().splitlines()
    return list(map(json.loads, lines)), json.loads(
        (folder / "results/profile_export_aiperf.json").read_text()
    )


def assert_its_cancels_are_the_workers(
    worker: RunningWorker, records: list[dict[str, Any]], tokens: int
) -> int:
    """Compare its records with the worker's: what it cancelled was stopped for its disconnect, and all else is whole.
    Returns how many it cancelled."""
    jobs = {job["correlation_id"]: job for job in worker.client.get("/jobs").json()["jobs"]}
    assert len(records) == REQUESTS
    stopped = 0
    for record in records:
        job = jobs[record["metadata"]["x_correlation_id"]]
        if record["metadata"]["was_cancelled"]:
            stopped += 1
            cancelled(worker, job["job_id"], "disconnect")
            assert record["error"]["code"] == 499
            assert (job["tokens_out"] or 0) < tokens
            continue
        assert (job["state"], job["stop_reason"], job["tokens_out"]) == ("completed", "length", tokens)
        assert not record.get("error"), record
        figures = {name: one["value"] for name, one in record["metrics"].items()}
        assert figures["usage_prompt_tokens"] == job["prompt_tokens"]
        assert figures["usage_completion_tokens"] == figures["output_sequence_length"] == tokens
        assert figures["request_latency"] > figures["time_to_first_token"] > 0
    return stopped


def assert_whole(figures: dict[str, Any], stopped: int) -> None:
    """Its summary counts what was not cancelled."""
    assert figures["request_count"]["avg"] == REQUESTS - stopped
    assert not figures["was_cancelled"]


def test_requests_that_it_cancels_are_stopped_and_the_others_measured(
    served: RunningWorker, tmp_path: Path
) -> None:
    """Each token of the scripted engine takes 20 ms."""
    asked = [{"text": script(token_ms=20) + str(number)} for number in range(REQUESTS)]
    (tmp_path / "asked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in asked))
    before = accepted(served)
    given = ("--input-file", "asked.jsonl", "--custom-dataset-type", "single-turn")
    records, figures = measured(served, tmp_path, *given, "--extra-inputs", "max_tokens:100")
    stopped = assert_its_cancels_are_the_workers(served, records, 100)
    assert 1 <= stopped <= 8
    assert_whole(figures, stopped)
    assert accepted(served) == before + REQUESTS


def test_the_bundled_model_is_measured_beside_requests_that_are_cancelled(
    real_worker: RunningWorker, tmp_path: Path
) -> None:
    """With prompts that it makes by the model's tokenizer: the worker counts as many tokens."""
    made = ("--isl", "200", "--isl-stddev", "0", "--osl", "100", "--extra-inputs", "ignore_eos:true")
    records, figures = measured(real_worker, tmp_path, *made)
    stopped = assert_its_cancels_are_the_workers(real_worker, records, 100)
    assert 1 <= stopped <= 8
    assert_whole(figures, stopped)
    at_rest(real_worker)
