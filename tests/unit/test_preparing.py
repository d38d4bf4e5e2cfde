"""Which prompt is prepared next: places are bounded, and each owner gets its turn."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st

from tests.fakes import queued_job
from worker_orcd.engine.tokenizer_threads import THREADS
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.preparing import MAX_PREPARING, Preparing


def queued(run: int, owner: str) -> Job:
    """An owner's job, whose prompt is not prepared."""
    job = queued_job(f"job-{run}", run=run)
    job.owner = owner
    return job


class Line:
    """Owners with any number of prompts, and the prompts that the engine has been given."""

    def __init__(self) -> None:
        self.preparing = Preparing()
        self.given: list[Job] = []
        self._run = 0

    def send(self, owner: str, prompts: int = 1) -> None:
        """An owner sends prompts, each of which never finishes rendering."""
        for _ in range(prompts):
            self._run += 1
            self.preparing.add(queued(self._run, owner))
        self.give()

    def give(self) -> None:
        """Give the engine the prompts that it may have now."""
        while job := self.preparing.next():
            self.given.append(job)

    def prepared(self, place: int) -> None:
        """The prompt at this place of `given` is prepared."""
        self.preparing.prepared(self.given.pop(place).run)
        self.give()

    def places(self) -> Counter[str]:
        """How many places each owner holds."""
        return Counter(job.owner for job in self.given)


def test_an_engine_has_a_thread_for_each_prompt_that_it_is_given() -> None:
    """Otherwise a quick prompt waits there until slow ones are rendered, whoever's they are."""
    assert THREADS == MAX_PREPARING


def test_an_owner_alone_gets_half_of_the_places() -> None:
    """The other places are left for owners that come later."""
    line = Line()
    for owner in "abcdef":
        line.send(owner, 100)
    assert line.places() == {"a": 8, "b": 4, "c": 2, "d": 1, "e": 1}


def test_an_owner_that_finds_no_place_gets_the_next_one() -> None:
    """Before owners that hold many places, and before further prompts of owners that hold one."""
    line = Line()
    for owner in "abcde":
        line.send(owner, 100)
    line.send("late")
    line.prepared(0)
    assert line.places()["late"] == 1


def test_an_owners_prompts_are_prepared_in_order() -> None:
    """First come, first served."""
    line = Line()
    line.send("a", 30)
    done: list[int] = []
    while line.given:
        done.append(line.given[0].run)
        line.prepared(0)
    assert done == list(range(1, 31))


def test_a_suspect_is_prepared_alone() -> None:
    """Whatever else waits."""
    preparing = Preparing()
    jobs = [queued(run, owner) for run, owner in enumerate("aab", start=1)]
    for job in jobs:
        preparing.add(job)
    assert [preparing.next(only=jobs[1]) for _ in range(2)] == [jobs[1], None]


@pytest.mark.parametrize("given", [True, False])
def test_the_prompt_of_a_job_that_has_ended_is_not_prepared(given: bool) -> None:
    """If the engine is preparing it, it keeps its place until the engine answers."""
    preparing, job = Preparing(), queued(1, "a")
    preparing.add(job)
    if given:
        assert preparing.next() is job
    preparing.remove(job)
    assert preparing.next() is None
    assert (job.run in preparing, preparing.oldest) == (given, 1 if given else None)
    for _ in range(2):
        preparing.prepared(job.run)
    assert job.run not in preparing


@given(acts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)) | st.integers(0, 15), max_size=60))
def test_an_owner_that_holds_no_place_never_waits_while_one_is_free(
    acts: list[tuple[str, int] | int],
) -> None:
    """However the others come and go, and places are never more than there are."""
    line = Line()
    for act in acts:
        if isinstance(act, tuple):
            line.send(*act)
        elif line.given:
            line.prepared(act % len(line.given))
        held = line.places()
        assert sum(held.values()) <= MAX_PREPARING
        assert max(held.values(), default=0) <= MAX_PREPARING // 2
        waiting = {owner for owner, jobs in line.preparing._waiting.items() if jobs}
        assert all(held[owner] for owner in waiting) or sum(held.values()) == MAX_PREPARING
