"""The OpenAPI description, tried against a worker: requests made from it, valid ones and not (schemathesis)."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.helpers import at_rest
from tests.lanes import examples
from worker_orcd.testing.harness import RunningWorker, running_worker
from worker_orcd.testing.scripted import VOCABULARY

EXAMPLES = examples(6)
"""Requests for each operation and kind: a fault that one request of five shows is found by 74 of 100 runs (1 - 0.8⁶),
each of which makes others."""


LENIENT: list[Any] = [positive_data_acceptance, negative_data_rejection]
"""Not for OpenAI's API: it accepts unknown fields, and refuses values that OpenAI's description allows."""


@pytest.fixture(scope="module")
def described() -> Iterator[RunningWorker]:
    """A worker whose jobs are short."""
    with running_worker(max_tokens_out=2, inference_timeout_sec=5) as worker:
        yield worker
        at_rest(worker)
        assert all("traceback" not in reported for reported in worker.narration())


def _same_names(tools: object) -> bool:
    """Whether two of these tools have one name."""
    functions = (
        [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    names = [str(function.get("name")) for function in functions if isinstance(function, dict)]
    return len(set(names)) < len(names)


def beyond_the_model(body: object) -> bool:
    """Whether it asks for what no description can say: more than the model has, tools and constraints that do not fit,
    or a whole number written as 1.0; or for so little time that a whole answer is a 504.

    All have tests of their own.
    """
    if not isinstance(body, dict):
        return False
    top_k, stop, prompt = body.get("top_k"), body.get("stop"), body.get("prompt")
    timeout_ms = body.get("timeout_ms")
    min_tokens, max_tokens = body.get("min_tokens"), body.get("max_tokens")
    biases, stop_tokens = body.get("logit_bias"), body.get("stop_token_ids")
    samplers = body.get("samplers")
    named = [
        *(biases if isinstance(biases, dict) else ()),
        *(stop_tokens if isinstance(stop_tokens, list) else ()),
    ]
    return (
        body.get("tool_choice") not in (None, "none", "auto")
        or _same_names(body.get("tools"))
        or (isinstance(samplers, list) and "infill" in samplers)
        or body.get("grammar") is not None
        or body.get("json_schema") not in (None, True, {})
        or (isinstance(timeout_ms, int) and 1 <= timeout_ms < 1000)
        or any(isinstance(n, float) and n.is_integer() for n in (*body.values(), *named))
        or any(isinstance(n, int) and n >= 2**64 for n in body.values())
        or (isinstance(top_k, int) and top_k > VOCABULARY)
        or any(str(token).isdecimal() and int(token) >= VOCABULARY for token in named)
        or (isinstance(min_tokens, int) and isinstance(max_tokens, int) and min_tokens > max_tokens)
        or (isinstance(stop, list) and any(isinstance(s, str) and len(s.encode()) > 32 for s in stop))
        or (isinstance(prompt, str) and len(prompt.encode()) > 8000)
    )


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_every_answer_is_one_that_is_described(
    described: RunningWorker, mode: schemathesis.GenerationMode
) -> None:
    """Status, content type and shape; nothing valid is refused as malformed, nothing malformed is taken; no 5xx.

    Shutting down is tried elsewhere.
    """
    description = schemathesis.openapi.from_url(f"{described.url}/openapi.json").exclude(path="/shutdown")
    tried = set()
    for result in description.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        tried.add(operation.label)

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: "schemathesis.Case[Any]") -> None:
            assume(not beyond_the_model(case.body))
            leniently = case.path.startswith(
                ("/v1/", "/infill", "/completion", "/tokenize", "/detokenize", "/apply-template")
            )
            case.call_and_validate(timeout=20, excluded_checks=LENIENT if leniently else None)

        try:
            check()
        except Unsatisfiable:
            # Nothing about it could be malformed: it takes no parameters and no body.
            assert mode is schemathesis.GenerationMode.NEGATIVE
            assert len(operation.body) == 0, operation.label
    assert {"POST /execute", "POST /cancel", "GET /jobs", "GET /jobs/{job_id}", "GET /health"} <= tried
