"""Steps in parts: one decode for each stretch of consecutive sequence ids, where sequences have separate streams."""

import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from tests.loop_runs import LONG, alone, in_decode
from worker_orcd.engine.model import Outcome


def with_a_gap(it: HandLoop) -> None:
    """Runs 1 and 4 decode with ids 0 and 3; run 2 prefills a long prompt, so run 3, which has id 2, waits."""
    it.post(run_message(1, max_tokens=40))
    in_decode(it, 1)
    it.post(run_message(2, LONG * 3, max_tokens=2), run_message(3, LONG * 5, max_tokens=2))
    it.post(run_message(4, max_tokens=40))
    in_decode(it, 4)
    it.turn()
    assert {1, 2, 4} == {*(out.run for out in it.steps[-1].tokens), *(p.run for p in it.steps[-1].progress)}


def interrupted_at_decode(it: HandLoop, number: int) -> None:
    """One turn in which the byte is set while the decode with this number runs."""
    first = len(it.model.steps)
    it.model.during_step = lambda: it.byte.set() if len(it.model.steps) == first + number else None
    it.turn()
    it.model.during_step = lambda: None


def test_with_separate_streams_each_stretch_of_ids_is_decoded_separately(make_loop: MakeLoop) -> None:
    """One report covers both; without separate streams there is one decode."""
    for exact, stretches in ((True, [{0, 1}, {3}]), (False, [{0, 1, 3}])):
        it = make_loop(exact=exact)
        with_a_gap(it)
        decodes, reports = len(it.model.steps), len(it.steps)
        it.turn()
        assert [set(step.batch.sequences) for step in it.model.steps[decodes:]] == stretches
        assert len(it.steps) == reports + 1
        assert [out.run for out in it.steps[-1].tokens] == [1, 4]


def test_the_parts_before_an_interrupted_one_keep_their_results(make_loop: MakeLoop) -> None:
    """The first part's token is reported and not computed again; the other run is protected in the next step."""
    it = make_loop(exact=True)
    with_a_gap(it)
    it.model.decode_ms = 20.0
    it.turn(3)
    reported, held = len(it.tokens(4)), it.cells_held()
    interrupted_at_decode(it, 1)
    report = it.steps[-1]
    assert report.aborted
    assert [out.run for out in report.tokens] == [1]
    assert [progress.run for progress in report.progress] == [2]
    assert it.cells_held()[3] == held[3]
    assert it.cells_held()[0] == held[0] + 1
    it.model.during_step = it.byte.set
    it.turn()
    assert not it.steps[-1].aborted
    assert len(it.tokens(4)) == reported + 1


def test_after_an_interrupted_part_nothing_is_computed(make_loop: MakeLoop) -> None:
    """The rest of the step is skipped: a stop is waiting."""
    it = make_loop(exact=True)
    with_a_gap(it)
    it.model.decode_ms = 20.0
    it.turn(3)
    decodes = len(it.model.steps)
    interrupted_at_decode(it, 0)
    assert [step.outcome for step in it.model.steps[decodes:]] == [Outcome.ABORTED]
    assert (it.steps[-1].aborted, it.steps[-1].tokens) == (True, ())


def test_the_id_of_a_run_that_ends_in_an_early_part_is_reused_before_the_next_step(
    make_loop: MakeLoop,
) -> None:
    """Not within the step: the rows of the last run are still planned with its old id."""
    it = make_loop(exact=True)
    with_a_gap(it)
    while not it.ends(1):
        it.turn()
    assert it.model.cells(0) == 0 < it.model.cells(3)
    it.turn()
    assert it.model.cells(3) == 0 < it.model.cells(0), "run 4 has taken run 1's id"
    it.finish()
    for run in (1, 4):
        assert it.tokens(run) == alone(make_loop, run, max_tokens=40)
    for run, prompt in ((2, LONG * 3), (3, LONG * 5)):
        assert it.tokens(run) == alone(make_loop, run, prompt, max_tokens=2)


@pytest.mark.parametrize("outcome", [Outcome.NO_ROOM, Outcome.NO_MEMORY, Outcome.FAILED])
def test_a_part_that_fails_ends_its_own_runs_and_the_others_restart_in_a_clean_cache(
    make_loop: MakeLoop, outcome: Outcome
) -> None:
    """llama.cpp's search heads may be wrong then, so the others are computed again, without losing a token."""
    it = make_loop(exact=True)
    with_a_gap(it)
    cleared: list[list[int]] = []
    it.model.clear = lambda: cleared.append(it.cells_held())  # type: ignore[method-assign]  # Nothing is held then.
    first = len(it.model.steps)

    def fail_the_second() -> None:
        it.model.next_outcome = outcome if len(it.model.steps) == first + 1 else None

    it.model.during_step = fail_the_second
    it.turn()
    it.model.during_step = lambda: None
    report = it.steps[-1]
    assert [out.run for out in report.tokens] == [1]
    assert [(end.run, end.error_code) for end in report.ended] == [(4, "INTERNAL")]
    assert sorted(report.preempted) == [1, 2, 3]
    assert cleared == [[0, 0, 0, 0]]
    it.finish()
    for run, prompt, most in ((1, "", 40), (2, LONG * 3, 2), (3, LONG * 5, 2)):
        assert it.tokens(run) == alone(make_loop, run, prompt, max_tokens=most)
