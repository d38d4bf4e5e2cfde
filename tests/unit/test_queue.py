"""The waiting line: order, and whom the engine is handed (contract, 2)."""

import pytest
from hypothesis import given, settings, strategies as st

from tests.fakes import at, queued_job, stop_request
from worker_orcd.engine.scheduler import max_waiting
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.queue import AHEAD, Capacity, JobQueue

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
        if job.prompt_tokens is not None:
            queue.prompt_counted(job)
    return queue


def handed_over(queue: JobQueue, capacity: Capacity = ROOMY) -> list[Job]:
    """The jobs that the engine is handed now, which all get a slot."""
    jobs = []
    while (job := queue.next_to_hand_over(capacity)) is not None:
        job.handed_over()
        job.started(at(1), "a-model")
        jobs.append(job)
    return jobs


def test_an_empty_line_has_nobody_to_run() -> None:
    """None, and nothing is held."""
    queue = JobQueue()
    assert queue.next_to_hand_over(ROOMY) is None
    assert (len(queue), queue.running) == (0, 0)


def test_the_engine_is_handed_jobs_in_the_order_they_came() -> None:
    """First come, first served."""
    jobs = [measured(run, 10, 10) for run in (1, 2, 3)]
    queue = line(*jobs)
    assert handed_over(queue) == jobs
    assert (len(queue), queue.running) == (0, 3)


def test_the_engine_gets_a_few_more_than_it_has_slots_for() -> None:
    """It always has the next one; those that wait there count as waiting."""
    jobs = [measured(run, 1, 1) for run in range(10)]
    queue = line(*jobs)
    for job in jobs[: ROOMY.sequences + AHEAD]:
        assert queue.next_to_hand_over(ROOMY) is job
        job.handed_over()
    assert queue.next_to_hand_over(ROOMY) is None
    assert (len(queue), queue.running) == (10, 0)
    for job in jobs[: ROOMY.sequences]:
        job.started(at(1), "a-model")
    assert (len(queue), queue.running, list(queue)) == (6, 4, jobs[6:])
    queue.remove(jobs[0])
    assert queue.next_to_hand_over(ROOMY) is jobs[6]


def test_an_urgent_job_is_handed_over_beyond_that() -> None:
    """The engine decides which one gives way."""
    jobs = [measured(run, 1, 1) for run in range(1, 10)]
    queue = line(*jobs)
    handed_over(queue)
    urgent = queued_job("urgent", run=20, priority=-1)
    urgent.measured((1,), 1)
    queue.append(urgent)
    queue.prompt_counted(urgent)
    assert handed_over(queue) == [urgent]


def test_jobs_that_wait_for_another_one_s_prefix_leave_their_places_to_others() -> None:
    """Up to as many again: however many they are, the engine's work for them stays bounded."""
    jobs = [measured(run, 1, 1) for run in range(1, 30)]
    queue = line(*jobs)
    places = ROOMY.sequences + AHEAD
    assert len(handed_over(queue)) == places
    queue.followers = 3
    assert handed_over(queue) == jobs[places : places + 3]
    queue.followers = 20
    assert handed_over(queue) == jobs[places + 3 : 2 * places]


def test_a_job_that_the_engine_gives_back_waits_in_its_old_place_and_can_be_handed_over_again() -> None:
    """Behind more urgent jobs, in front of later ones. The engine gives back none that the front would hand over at
    once."""
    jobs = [measured(run, 1, 1) for run in range(1, 9)]
    queue = line(*jobs)
    places = ROOMY.sequences + AHEAD
    for job in jobs[:places]:
        assert queue.next_to_hand_over(ROOMY) is job
        job.handed_over()
    jobs[2].returned()
    queue.returned(jobs[2])
    assert list(queue) == [jobs[2], *jobs[places:]]
    assert handed_over(queue) == [jobs[2]]
    assert 2 * places <= max_waiting(ROOMY.sequences)


def test_jobs_that_left_do_not_pile_up_behind_a_full_engine() -> None:
    """Thousands are counted and cancelled meanwhile."""
    jobs = [measured(run, 1, 1) for run in range(1, 8)]
    queue = line(*jobs)
    assert handed_over(queue) == jobs[:-1]
    for run in range(8, 5000):
        late = measured(run, 1, 1)
        queue.append(late)
        queue.prompt_counted(late)
        assert queue.next_to_hand_over(ROOMY) is None
        queue.remove(late)
    assert len(queue._counted) < 200
    queue.remove(jobs[0])
    assert queue.next_to_hand_over(ROOMY) is jobs[-1]


def test_jobs_of_a_dead_engine_are_queued_in_front_of_those_who_came_later() -> None:
    """They are counted already; those that have ended are gone."""
    jobs = [measured(run, 10, 10) for run in range(1, 10)]
    queue = line(*jobs)
    in_engine = handed_over(queue)
    for job in in_engine[1:]:
        job.engine_lost(at(2))
    queue.engine_lost()
    assert (list(queue), queue.running) == (jobs[1:], 0)
    assert handed_over(queue) == jobs[1:7]


def test_a_job_that_is_stopped_while_it_waits_in_the_engine_neither_runs_nor_waits() -> None:
    """Nobody sees more jobs running than there are slots, and its place in the queue is free at once."""
    jobs = [measured(run, 1, 1) for run in range(1, 4)]
    queue = line(*jobs)
    for job in jobs:
        assert queue.next_to_hand_over(ROOMY) is job
        job.handed_over()
    jobs[0].started(at(1), "a-model")
    assert (queue.running, len(queue)) == (1, 2)
    jobs[1].request_stop(stop_request())
    assert (queue.running, len(queue)) == (1, 1)
    jobs[0].request_stop(stop_request())
    assert (queue.running, len(queue)) == (1, 1)


def test_leaving_gives_back_a_place_in_the_line_or_in_the_engine() -> None:
    """Whichever it has; without one, or twice, it is harmless."""
    runs, waits, stranger = measured(1, 1, 1), queued_job("job-2", run=2), measured(3, 1, 1)
    queue = line(runs, waits)
    handed_over(queue)
    queue.remove(waits)
    queue.remove(stranger)
    assert (len(queue), queue.running) == (0, 1)
    queue.remove(runs)
    queue.remove(runs)
    assert (len(queue), queue.running) == (0, 0)


def test_a_job_whose_prompt_is_not_counted_yet_holds_up_no_other() -> None:
    """Its chat template may take seconds. Counted, it is the head again, and no later job overtakes it."""
    slow, second, third = queued_job("job-1", run=1), measured(2, 1, 1), measured(3, 1, 1)
    queue = line(slow, second, third)
    assert queue.next_to_hand_over(ROOMY) is second
    slow.measured((1,), 1)
    queue.prompt_counted(slow)
    assert queue.next_to_hand_over(ROOMY) is slow
    assert queue.next_to_hand_over(ROOMY) is third


def test_a_counted_job_runs_however_many_before_it_are_not_counted() -> None:
    """Prompts are not counted in the order of the queue, since each owner gets its turn."""
    queue = line(*(queued_job(f"job-{run}", run=run) for run in range(1, 500)), last := measured(500, 1, 1))
    assert queue.next_to_hand_over(ROOMY) is last
    assert queue.next_to_hand_over(ROOMY) is None


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
    count=st.integers(1, 30),
    leaving=st.lists(st.integers(0, 29), max_size=60),
    sequences=st.integers(1, 5),
)
@settings(deadline=None)
def test_the_engine_never_has_too_many_and_order_is_never_broken(
    count: int, leaving: list[int], sequences: int
) -> None:
    """Whatever comes and goes: few more than it has slots for, in the order they came, and as many as there may be."""
    capacity = Capacity(cells=150, cells_per_job=120, sequences=sequences)
    jobs = [measured(run, 1, 1) for run in range(count)]
    queue = line(*jobs)
    order: list[int] = []
    in_engine: dict[int, Job] = {}
    for place in [*leaving, *range(len(jobs))]:
        for job in handed_over(queue, capacity):
            order.append(job.run)
            in_engine[job.run] = job
        left = len(jobs) - len(order) + len(in_engine)
        assert queue.running == len(in_engine) == min(sequences + AHEAD, left)
        if in_engine:
            queue.remove(in_engine.pop(sorted(in_engine)[place % len(in_engine)]))
    assert order == list(range(count))
