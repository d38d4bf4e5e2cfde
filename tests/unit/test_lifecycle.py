"""The lifecycle table, row by row, against an expectation that was written independently."""

import itertools
import re
from collections.abc import Callable

import pytest

from tests.fakes import at, freed_at, queued_job, running_job, snapshot_of, stop_request
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.lifecycle import IllegalTransition, State, Trigger, following, mermaid

EXPECTED = {
    ("queued", "hand_over"): "waiting",
    ("queued", "stop"): "ended",
    ("queued", "fail"): "ended",
    ("queued", "engine_lost"): "queued",
    ("waiting", "start"): "running",
    ("waiting", "stop"): "stopping",
    ("waiting", "fail"): "ended",
    ("waiting", "engine_lost"): "queued",
    ("waiting", "return"): "queued",
    ("running", "token"): "running",
    ("running", "stop"): "stopping",
    ("running", "finish"): "ended",
    ("running", "fail"): "ended",
    ("running", "engine_lost"): "queued",
    ("running", "preempt"): "waiting",
    ("stopping", "start"): "stopping",
    ("stopping", "token"): "stopping",
    ("stopping", "stop"): "stopping",
    ("stopping", "stopped"): "ended",
    ("stopping", "finish"): "ended",
    ("stopping", "fail"): "ended",
    ("stopping", "engine_lost"): "ended",
    ("stopping", "preempt"): "stopping",
    ("stopping", "return"): "stopping",
    ("stopping", "give_up"): "ended",
    ("ended", "stop"): "ended",
}
STATES = ["queued", "waiting", "running", "stopping", "ended"]
TRIGGERS = [
    "hand_over",
    "start",
    "token",
    "stop",
    "stopped",
    "finish",
    "fail",
    "engine_lost",
    "preempt",
    "return",
    "give_up",
]
ILLEGAL = [pair for pair in itertools.product(STATES, TRIGGERS) if pair not in EXPECTED]

ACTS: dict[str, Callable[[Job], object]] = {
    "hand_over": lambda job: job.handed_over(),
    "start": lambda job: job.started(at(9), "a-model"),
    "token": lambda job: job.token(at(9), 5, "x"),
    "stop": lambda job: job.request_stop(stop_request(seconds=9)),
    "stopped": lambda job: job.stopped(at(9), freed_at(9)),
    "finish": lambda job: job.finished(at(9), "stop", freed_at(9)),
    "fail": lambda job: job.failed(at(9), JobError(ErrorCode.INTERNAL, "oh"), freed_at(9)),
    "engine_lost": lambda job: job.engine_lost(at(9)),
    "preempt": lambda job: job.preempted(),
    "return": lambda job: job.returned(),
    "give_up": lambda job: job.give_up(at(9)),
}


def job_in(state: str) -> Job:
    """A job that reached this state by ordinary triggers."""
    if state == "queued":
        return queued_job()
    if state == "waiting":
        job = queued_job()
        job.measured((1, 2, 3), max_tokens=8)
        job.handed_over()
        return job
    job = running_job()
    job.token(at(2), 4, "a")
    if state == "stopping":
        job.request_stop(stop_request(seconds=3))
    if state == "ended":
        job.finished(at(4), "length", freed_at(4))
    assert job.state == state
    return job


def test_the_expectation_speaks_of_every_state_and_trigger_there_is() -> None:
    """A state or trigger that is added has to be added here too."""
    assert list(State) == STATES
    assert list(Trigger) == TRIGGERS


@pytest.mark.parametrize(("state", "trigger"), EXPECTED)
def test_each_row_of_the_table_leads_where_it_should(state: str, trigger: str) -> None:
    """The table has the expected rows, with the expected next states."""
    assert following(State(state), Trigger(trigger)) == EXPECTED[state, trigger]


@pytest.mark.parametrize(("state", "trigger"), ILLEGAL)
def test_what_the_table_does_not_list_is_illegal_and_says_so(state: str, trigger: str) -> None:
    """The message names state and trigger."""
    with pytest.raises(IllegalTransition, match=f"a {state} job cannot {trigger}"):
        following(State(state), Trigger(trigger))


@pytest.mark.parametrize(("state", "trigger"), EXPECTED)
def test_a_real_job_follows_each_row(state: str, trigger: str) -> None:
    """The job's own methods are the rows, and only an ended job has a terminal event."""
    job = job_in(state)
    ACTS[trigger](job)
    assert job.state == EXPECTED[state, trigger]
    assert (job.terminal is not None) == (job.state is State.ENDED)


@pytest.mark.parametrize(("state", "trigger"), ILLEGAL)
def test_an_illegal_event_leaves_a_real_job_as_it_was(state: str, trigger: str) -> None:
    """It raises, and the job has not changed: no event, no time, no receipt."""
    job = job_in(state)
    before = snapshot_of(job)
    with pytest.raises(IllegalTransition):
        ACTS[trigger](job)
    assert snapshot_of(job) == before


def test_a_stop_of_an_ended_job_changes_nothing_at_all() -> None:
    """It is legal, because a cancel may come late, but it does not count."""
    job = job_in("ended")
    before = snapshot_of(job)
    assert not job.request_stop(stop_request())
    assert snapshot_of(job) == before


@pytest.mark.parametrize("state", STATES)
def test_only_an_ended_job_is_not_live(state: str) -> None:
    """`live` means that the terminal event is still to come."""
    assert job_in(state).live == (state != "ended")


def test_no_way_leads_out_of_ended() -> None:
    """A decided end is never reversed (G2)."""
    assert {trigger: target for (state, trigger), target in EXPECTED.items() if state == "ended"} == {
        "stop": "ended"
    }


def drawn() -> list[tuple[str, str, str]]:
    """What the diagram says: states, triggers and where they lead."""
    box = re.compile(r' *state "(\w+)(?:<br/>stays on: ([\w, ]+))?" as (\w+)')
    arrow = re.compile(r" *(\w+) --> (\w+): ([\w, ]+)")
    rows = []
    for line in mermaid().splitlines():
        if found := box.fullmatch(line):
            assert found[1] == found[3]
            rows += [(found[1], trigger, found[1]) for trigger in (found[2] or "").split(", ") if trigger]
        elif found := arrow.fullmatch(line):
            rows += [(found[1], trigger, found[2]) for trigger in found[3].split(", ")]
    return rows


def test_the_diagram_names_every_row_once_and_nothing_else() -> None:
    """On an arrow between two states, or in the box of the state that stays."""
    assert sorted(drawn()) == sorted((*row, target) for row, target in EXPECTED.items())


def test_the_diagram_begins_where_jobs_begin_and_ends_where_they_end() -> None:
    """One way in, one way out, and a line for each row's two states."""
    lines = [line.strip() for line in mermaid().splitlines()]
    assert lines[0] == "stateDiagram-v2"
    assert [line for line in lines if "[*]" in line] == ["[*] --> queued", "ended --> [*]"]
    between = {(state, target) for (state, _), target in EXPECTED.items()}
    assert len(lines) == 3 + len(between | {(state, state) for state in STATES})
