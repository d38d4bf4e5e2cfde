"""Prompts whose tokens are scored: what the engine reports of them, and how a completion shows them."""

import pytest

from tests.fakes import HandLoop, queued_job, run_message
from worker_orcd.api.openai.completion_request import CompletionRequest
from worker_orcd.api.openai.response_bodies import Completion
from worker_orcd.engine.logprobs import logprobs_of
from worker_orcd.engine.model import AbortMode, Batch
from worker_orcd.engine.run import Run
from worker_orcd.jobs.events import Event, Token
from worker_orcd.sampling import Logprobs, SamplingParams, TokenLogprob
from worker_orcd.worker.wire import to_submit

WORDS = "one prompt that is scored, " * 3


def reported(loop: HandLoop, run: int) -> list[Logprobs]:
    """The scores that a front collects from the reports about a run."""
    found: list[Logprobs] = []
    for step in loop.steps:
        for scored in step.prompt_logprobs:
            if scored.run == run:
                found[scored.first :] = scored.logprobs
    return found


def by_definition(run: Run) -> list[Logprobs]:
    """The same scores, from logits that are computed token by token."""
    loop = HandLoop()
    name = loop.model.name
    found: list[Logprobs] = [(TokenLogprob(run.prompt[0], name(run.prompt[0]), None),)]
    for position, token in enumerate(run.prompt[:-1]):
        loop.model.decode(Batch([token], [position], [0], [True]), abort_mode=AbortMode.NONE)
        found.append(
            logprobs_of(
                loop.model.logits(0), run.prompt[position + 1], run.request.prompt_logprobs or 0, name
            )
        )
    loop.close()
    return found


@pytest.mark.parametrize("best", [0, 2])
@pytest.mark.parametrize("exact", [False, True])
def test_each_prompt_token_is_scored_by_what_precedes_it(best: int, exact: bool) -> None:
    """Beside others, over several steps, although a run before it has left the same prompt warm."""
    loop = HandLoop(exact=exact)
    loop.post(run_message(1, WORDS, cache="a", max_tokens=1))
    loop.finish()
    scored = run_message(2, WORDS, prompt_logprobs=best, max_tokens=2)
    loop.post(scored, run_message(3, "beside", max_tokens=9))
    loop.finish()
    assert sum(bool(step.prompt_logprobs) for step in loop.steps) > 2
    assert reported(loop, 2) == by_definition(scored)
    assert not reported(loop, 3)
    assert len(loop.tokens(2)) == 2
    loop.close()


def test_aborted_steps_neither_lose_nor_shift_a_score() -> None:
    """Each second step is aborted."""
    loop = HandLoop()
    scored = run_message(1, WORDS, prompt_logprobs=1, max_tokens=1)
    loop.post(scored)
    loop.abort_each_second_step(3)
    loop.finish()
    assert reported(loop, 1) == by_definition(scored)
    loop.close()


@pytest.mark.parametrize("scored_whole", [False, True])
def test_a_run_that_is_preempted_is_scored_anew_unless_it_is_scored_as_a_whole(scored_whole: bool) -> None:
    """What was reported stands, and nothing is missing in the end."""
    loop = HandLoop(parallel=1)
    scored = run_message(1, WORDS, prompt_logprobs=1, max_tokens=9, priority=1)
    loop.post(scored)
    loop.turn()
    while scored_whole and not loop.tokens(1):
        loop.turn()
    loop.post(run_message(2, order=-1.0, max_tokens=2))
    loop.turn()
    assert loop.steps[-1].preempted == (1,)
    before = len(loop.steps)
    loop.finish()
    again = [said.run for step in loop.steps[before:] for said in step.prompt_logprobs]
    assert (again == []) == scored_whole
    assert reported(loop, 1) == by_definition(scored)
    assert len(loop.tokens(1)) == 9
    loop.close()


def test_a_run_without_tokens_ends_behind_its_prompt() -> None:
    """Its scores are all that is wanted."""
    loop = HandLoop()
    loop.post(run_message(1, WORDS, prompt_logprobs=0, max_tokens=0))
    loop.finish()
    assert (loop.tokens(1), loop.ends(1)) == ([], ["length"])
    assert len(reported(loop, 1)) == len(run_message(1, WORDS).prompt)
    loop.close()


def test_a_scored_job_uses_no_prefix_and_is_not_scored_twice() -> None:
    """A warm prefix has no logits; a job that is requeued behind its prompt has its scores."""
    asked = CompletionRequest.parse(b'{"prompt": "abc", "echo": true, "logprobs": 1}')
    job = queued_job()
    job.request = asked.wanted("job-1")[0]
    job.measured((1, 2, 3), max_tokens=8)
    assert (to_submit(job).prompt_logprobs, to_submit(job).cache) == (1, None)
    job.prompt_logprobs = [(TokenLogprob(1, b"a", None),)] * 2
    assert (to_submit(job).prompt_logprobs, to_submit(job).cache) == (1, None)
    job.prompt_logprobs *= 2
    assert to_submit(job).prompt_logprobs is None
    assert to_submit(job).cache is not None


EVENTS: list[Event] = [
    Token("d", 0, (TokenLogprob(4, b"d", -0.5), TokenLogprob(4, b"d", -0.5))),
]
SCORED: list[Logprobs] = [
    (TokenLogprob(1, b"ab", None),),
    (TokenLogprob(2, b"c", -2.0), TokenLogprob(9, b"x", -0.25)),
]


@pytest.mark.parametrize(("prompt", "text"), [("ab c", "ab c"), (None, "abc")])
def test_an_echo_begins_with_the_prompt_and_its_scores(prompt: str | None, text: str) -> None:
    """A text as it was sent; of token ids, the text of the tokens."""
    job = queued_job(logprobs=1)
    job.prompt_logprobs = SCORED
    body = Completion("c", "m", 0, 1, include_usage=False, echo=[prompt])
    first, second = [body.echo_chunk(0, job), *body.chunks(0, EVENTS[0])]
    choices = [chunk["choices"][0] for chunk in (first, second)]
    assert [choice["text"] for choice in choices] == [text, "d"]
    assert choices[0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"x": -0.25, "c": -2.0}],
        "text_offset": [0, 2],
    }
    assert choices[1]["logprobs"]["text_offset"] == [3]
    silent = queued_job()
    silent.prompt_logprobs = SCORED
    assert body.echo_chunk(0, silent)["choices"][0]["logprobs"] is None


def test_scores_of_a_prompt_do_not_change_what_is_drawn() -> None:
    """With and without scores the tokens are the same."""
    texts = []
    for scored in (None, 3):
        loop = HandLoop()
        sampling = SamplingParams(seed=3)
        loop.post(run_message(1, WORDS, max_tokens=5, prompt_logprobs=scored, sampling=sampling))
        loop.finish()
        texts.append(loop.tokens(1))
        loop.close()
    assert texts[0] == texts[1]
