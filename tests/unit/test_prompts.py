"""Accepted runs are kept from their preparing until they begin, and no longer than they are wanted."""

import pytest

from worker_orcd.engine.prompts import Prompts
from worker_orcd.protocol.messages import Begin, Submit
from worker_orcd.sampling import SamplingParams

SUBMIT = Submit(
    1, "job-1", "cor", "x", "none", ("stop",), 32, SamplingParams(seed=3), 1, "0", cache="a", order=2.0
)


def test_an_accepted_run_begins_with_its_tokens_and_only_once() -> None:
    """What was submitted, the prompt's tokens, and where it goes on from."""
    prompts = Prompts()
    prompts.put(SUBMIT)
    with prompts.next() as (request, _):
        assert request is SUBMIT
        prompts.accept(SUBMIT, (5, 6))
    run = prompts.begin(Begin(1, 9, (7,)))
    assert (run.prompt, run.generated, run.max_tokens) == ((5, 6), (7,), 9)
    request = run.request
    assert (request.stop, request.sampling, request.cache, request.order) == (
        ("stop",),
        SamplingParams(seed=3),
        "a",
        2.0,
    )
    with pytest.raises(KeyError):
        prompts.begin(Begin(1, 9))


@pytest.mark.parametrize("when", ["while it is prepared", "once it is accepted"])
def test_a_run_that_is_dropped_is_not_kept(when: str) -> None:
    """Thousands that are cancelled while they wait leave nothing."""
    prompts = Prompts()
    prompts.put(SUBMIT)
    with prompts.next():
        if when == "while it is prepared":
            prompts.drop(1)
        prompts.accept(SUBMIT, (5, 6))
    if when == "once it is accepted":
        prompts.drop(1)
    with pytest.raises(KeyError):
        prompts.begin(Begin(1, 9))
