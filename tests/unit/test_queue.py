"""The queue: order, expected cells, and what fits (contract, 2)."""

import pytest
from hypothesis import given, settings, strategies as st

from tests.fakes import queued_job
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import Capacity, JobQueue

ROOMY = Capacity(cells=1000, cells_per_job=500, sequences=4)


def measured(run: int, prompt: int, out: int) -> Job:
    """A job whose prompt is counted."""
    job = queued_job(f"job-{run}", run=run)
    job.measured((1,) * prompt, out)
    return job


def line(*jobs: Job) -> JobQueue:
    """A queue with these jobs in this order."""
    queue = JobQueue()
    for job in jobs:
        queue.append(job)
    return queue


def test_an_empty_queue_has_no_job_to_run() -> None:
    """Nothing is returned and nothing is held."""
    queue = JobQueue()
    assert queue.next_to_run(ROOMY) is None
    assert (len(queue), queue.running) == (0, 0)


def test_jobs_run_in_the_order_they_came() -> None:
    """First come, first served."""
    jobs = [measured(run, 10, 10) for run in (1, 2, 3)]
    queue = line(*jobs)
    assert [queue.next_to_run(ROOMY) for _ in range(4)] == [*jobs, None]
    assert (len(queue), queue.running) == (0, 3)


def test_a_job_whose_prompt_is_not_counted_yet_holds_up_no_other() -> None:
    """Its chat template may take seconds. Counted, it is the head again, and no later job overtakes it."""
    slow, second, third = queued_job("job-1", run=1), measured(2, 1, 1), measured(3, 1, 1)
    queue = line(slow, second, third)
    assert queue.next_to_run(ROOMY) is second
    slow.measured((1,), 1)
    queue.prompt_counted(slow)
    assert queue.next_to_run(ROOMY) is slow
    assert queue.next_to_run(ROOMY) is third


def test_a_counted_job_runs_however_many_before_it_are_not_counted() -> None:
    """Prompts are not counted in the order of the queue, since each owner gets its turn."""
    queue = line(*(queued_job(f"job-{run}", run=run) for run in range(1, 500)), last := measured(500, 1, 1))
    assert queue.next_to_run(ROOMY) is last
    assert queue.next_to_run(ROOMY) is None


def test_jobs_that_left_do_not_pile_up_behind_a_head_that_waits() -> None:
    """Thousands are counted and cancelled while a large one waits for room."""
    first, large = measured(1, 500, 300), measured(2, 400, 200)
    queue = line(first, large)
    assert queue.next_to_run(ROOMY) is first
    for run in range(3, 5000):
        small = measured(run, 1, 1)
        queue.append(small)
        assert queue.next_to_run(ROOMY) is None
        queue.remove(small)
    assert len(queue._counted) < 200
    queue.remove(first)
    assert queue.next_to_run(ROOMY) is large


def test_a_job_runs_when_what_it_is_about_to_hold_fits_beside_the_running_ones() -> None:
    """Its prompt and 64 cells of growth have to fit, not all that it may generate."""
    first, exact, one_more = measured(1, 400, 500), measured(2, 472, 500), measured(3, 1, 1)
    queue = line(first, exact, one_more)
    assert queue.next_to_run(ROOMY) is first
    assert queue.next_to_run(ROOMY) is exact
    assert queue.next_to_run(ROOMY) is None
    queue.remove(first)
    assert queue.next_to_run(ROOMY) is one_more


def test_a_job_that_grew_leaves_less_room() -> None:
    """Cells of generated tokens count, too."""
    first, second = measured(1, 400, 500), measured(2, 472, 500)
    queue = line(first, second)
    assert queue.next_to_run(ROOMY) is first
    first.tokens_out += 1
    assert queue.next_to_run(ROOMY) is None


def test_a_job_alone_always_runs() -> None:
    """A job that fits its context fits an empty engine."""
    queue = line(measured(1, 480, 500))
    assert queue.next_to_run(Capacity(cells=500, cells_per_job=500, sequences=4)) is not None


def test_a_requeued_job_waits_in_front_of_later_ones() -> None:
    """In order of arrival, in whatever order jobs are requeued."""
    jobs = [measured(run, 10, 10) for run in range(1, 6)]
    queue = line(*jobs)
    in_engine = [queue.next_to_run(ROOMY) for _ in range(3)]
    assert in_engine == jobs[:3]
    for job in (jobs[1], jobs[0], jobs[2]):
        queue.requeue(job)
    assert (list(queue), queue.running) == (jobs, 0)


def test_no_job_overtakes_a_head_that_does_not_fit() -> None:
    """A small job behind a large one waits too, so the large one does not starve."""
    first, large, small = measured(1, 500, 300), measured(2, 400, 200), measured(3, 1, 1)
    queue = line(first, large, small)
    assert queue.next_to_run(ROOMY) is first
    assert queue.next_to_run(ROOMY) is None
    queue.remove(large)
    assert queue.next_to_run(ROOMY) is small


def test_no_more_jobs_run_than_there_are_sequences() -> None:
    """However few cells they need."""
    queue = line(*(measured(run, 1, 1) for run in range(6)))
    assert [queue.next_to_run(ROOMY) is not None for _ in range(5)] == [True] * 4 + [False]
    assert queue.running == 4


def test_leaving_gives_back_a_place_in_the_line_or_in_the_engine() -> None:
    """A job is removed from the queue or from the engine."""
    runs, waits = measured(1, 1, 1), measured(2, 1, 1)
    queue = line(runs, waits)
    queue.next_to_run(ROOMY)
    queue.remove(waits)
    assert (len(queue), queue.running) == (0, 1)
    queue.remove(runs)
    assert (len(queue), queue.running) == (0, 0)


def test_leaving_without_a_place_or_twice_is_harmless() -> None:
    """No other job loses its place."""
    runs, stranger = measured(1, 600, 1), measured(2, 600, 1)
    queue = line(runs)
    queue.next_to_run(ROOMY)
    queue.remove(stranger)
    assert queue.running == 1
    queue.remove(runs)
    queue.remove(runs)
    assert queue.running == 0


def test_what_a_job_is_given_at_most_is_what_it_asked_for() -> None:
    """If it fits beside the prompt, to the token."""
    capacity = Capacity(cells=1000, cells_per_job=100, sequences=4)
    assert capacity.max_tokens_for(40, 60, 2048) == 60
    assert capacity.max_tokens_for(40, 1, 2048) == 1


def test_output_that_does_not_fit_beside_the_prompt_is_refused_with_the_sum() -> None:
    """The client sees by how much it does not fit."""
    with pytest.raises(JobError, match=r"40 tokens.*61.*101 tokens.*a job has 100") as refused:
        Capacity(1000, 100, 4).max_tokens_for(40, 61, 2048)
    assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_REQUEST, "max_tokens")


@pytest.mark.parametrize("prompt", [100, 101, 100_000])
@pytest.mark.parametrize("asked", [None, 1])
def test_a_prompt_that_leaves_no_room_for_output_is_refused(prompt: int, asked: int | None) -> None:
    """It can never fit, with or without `max_tokens`."""
    with pytest.raises(JobError) as refused:
        Capacity(1000, 100, 4).max_tokens_for(prompt, asked, 2048)
    assert (refused.value.http_status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize(("prompt", "given"), [(1, 99), (50, 50), (99, 1)])
def test_without_max_tokens_a_job_gets_as_many_as_fit(prompt: int, given: int) -> None:
    """The default of 2048 is clamped to the room beside the prompt, never refused for it."""
    assert Capacity(1000, 100, 4).max_tokens_for(prompt, None, 2048) == given


@pytest.mark.parametrize(
    ("asked", "ceiling", "given"),
    [(4096, None, 60), (61, 2048, 60), (60, 30, 30), (20, 30, 20), (None, None, 60)],
)
def test_what_is_asked_for_can_be_cut_to_what_fits(
    asked: int | None, ceiling: int | None, given: int
) -> None:
    """For APIs whose clients send defaults: to the room beside the prompt, and to the worker's ceiling."""
    assert Capacity(1000, 100, 4).max_tokens_for(40, asked, ceiling, cut=True) == given


def test_a_prompt_that_does_not_fit_is_refused_in_the_words_that_clients_look_for() -> None:
    """The message has both numbers, and OpenAI's code."""
    with pytest.raises(
        JobError, match=r"^This model's maximum context length is 100 tokens\. However, your prompt"
    ) as it:
        Capacity(1000, 100, 4).max_tokens_for(140, 4096, None, cut=True)
    assert "140 tokens" in it.value.message
    assert it.value.openai_code == "context_length_exceeded"


def test_without_max_tokens_a_job_gets_no_more_than_the_ceiling() -> None:
    """`--max-tokens-out` is the default."""
    assert Capacity(100_000, 50_000, 4).max_tokens_for(10, None, 2048) == 2048


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=30),
    leaving=st.lists(st.integers(0, 29), max_size=60),
    sequences=st.integers(1, 5),
)
@settings(deadline=None)
def test_what_is_expected_never_exceeds_the_engine_and_order_is_never_broken(
    sizes: list[tuple[int, int]], leaving: list[int], sequences: int
) -> None:
    """For any sequence of jobs: cells and sequences suffice, and jobs start in order of arrival."""
    capacity = Capacity(cells=150, cells_per_job=120, sequences=sequences)
    jobs = [measured(run, prompt, out) for run, (prompt, out) in enumerate(sizes)]
    queue = line(*jobs)
    started: list[int] = []
    in_engine: dict[int, Job] = {}
    for place in [*leaving, *range(len(jobs))]:
        while (job := queue.next_to_run(capacity)) is not None:
            started.append(job.run)
            in_engine[job.run] = job
        assert sum(job.cells_expected for job in in_engine.values()) <= capacity.cells
        assert queue.running == len(in_engine) <= sequences
        if in_engine:
            queue.remove(in_engine.pop(sorted(in_engine)[place % len(in_engine)]))
    assert started == sorted(started)
