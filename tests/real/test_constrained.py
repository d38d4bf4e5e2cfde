"""Constrained output of the real model."""

import json
import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jsonschema_rs
import pytest

from tests.schemas import random_schema
from worker_orcd.testing.harness import RunningWorker, Stream

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}


def reason(stream: Stream) -> str:
    """How its job ended, once it has."""
    stream.finished()
    assert stream.terminal is not None, stream.text
    return str(stream.terminal.data.get("stop_reason") or stream.terminal.data.get("code"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_output_that_ends_by_itself_is_valid(real_worker: RunningWorker, temperature: float) -> None:
    """Greedy and sampled."""
    stream = real_worker.execute(
        f"person-{temperature}",
        "Describe Bob as JSON.",
        json_schema=PERSON,
        temperature=temperature,
        seed=3,
        max_tokens=150,
    )
    assert reason(stream) == "stop"
    jsonschema_rs.validator_for(PERSON).validate(json.loads(stream.text))


def test_a_grammar_is_kept(real_worker: RunningWorker) -> None:
    """The model would rather write a sentence."""
    stream = real_worker.execute("yes", "Is the sky blue?", grammar='root ::= "yes" | "no"', temperature=0.0)
    assert reason(stream) == "stop"
    assert stream.text in ("yes", "no")


def _outcome(worker: RunningWorker, seed: int) -> str:
    """The outcome of a random schema."""
    schema = random_schema(random.Random(seed))
    fields = {"json_schema": schema, "temperature": 1.0, "seed": seed, "max_tokens": 200, "template": "none"}
    answer = worker.client.post(
        "/execute", json={"job_id": f"schema-{seed}", "prompt": "{", **fields}, timeout=240
    )
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "json_schema"
        return "refused"
    events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
    end = events[-1]
    if end.get("code") == "INVALID_REQUEST":  # It took longer to compile than a response waits for that.
        assert not any("t" in event for event in events)
        return "refused"
    if end.get("stop_reason") == "stop":
        text = "".join(event["t"] for event in events if "t" in event)
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(text))
    return str(end.get("stop_reason") or end.get("code"))


def _try_schemas(worker: RunningWorker, seeds: range) -> None:
    with ThreadPoolExecutor(8) as clients:
        outcomes = Counter(clients.map(partial(_outcome, worker), seeds))
    print(outcomes)
    assert set(outcomes) <= {"stop", "length", "refused"}
    assert outcomes["stop"] > len(seeds) / 2


def test_random_schemas_are_kept_or_refused(real_worker: RunningWorker) -> None:
    """A fault that one schema of five shows is found by 89 of 100 samples (1 - 0.8¹⁰), the nightly test's thousand
    find nearly any."""
    _try_schemas(real_worker, range(10))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_thousand_random_schemas_are_kept_or_refused(real_worker: RunningWorker) -> None:
    """Their numbers follow those of the shorter test."""
    _try_schemas(real_worker, range(1000, 2000))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_constrained_job_is_the_same_after_its_engine_was_killed(
    real_worker: RunningWorker, temperature: float
) -> None:
    """Its grammar is advanced through the tokens so far."""

    def start(name: str) -> Stream:
        return real_worker.execute(
            f"{name}-{temperature}",
            "Describe Bob as JSON.",
            json_schema=PERSON,
            temperature=temperature,
            seed=11,
            max_tokens=150,
            cache_prompt=False,
        )

    alone = start("alone")
    assert reason(alone) == "stop"
    killed = start("killed").tokens_seen(12)
    real_worker.signal_engine(signal.SIGKILL)
    assert reason(killed) == "stop"
    killed.assert_whole()
    jsonschema_rs.validator_for(PERSON).validate(json.loads(killed.text))
    assert killed.text == alone.text
