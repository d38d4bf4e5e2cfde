"""The engine's loop, turned by hand: failures of the device, and what the audit of KV cells finds."""

import json

import msgspec
import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from tests.loop_runs import LONG, alone, generates, in_decode
from worker_orcd.engine.model import AbortMode, Batch, Outcome
from worker_orcd.engine.slot import NoUsableSequence
from worker_orcd.protocol.messages import AuditFault, Ping, Step, Stop


def test_a_failing_device_ends_the_step_s_runs_with_an_error_and_frees_them(loop: HandLoop) -> None:
    """All runs in the step fail; later runs work."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.model.next_outcome = Outcome.FAILED
    loop.turn()
    report = loop.steps[-1]
    assert {end.run: end.error_code for end in report.ended} == {1: "INTERNAL", 2: "INTERNAL"}
    assert all(end.cells_after == 0 < end.cells_before for end in report.ended)
    assert report.tokens == ()
    assert (report.cells_used, report.sequences_used) == (0, 0)
    assert loop.model.samplers_open == 0
    loop.post(run_message(3, max_tokens=2))
    loop.finish()
    assert loop.ends(3) == ["length"]


def test_a_run_whose_script_fails_ends_on_that_token(loop: HandLoop) -> None:
    """Its earlier tokens were reported."""
    loop.post(run_message(1, '{"fail_at": 3, "token_ms": 0, "row_ms": 0}', max_tokens=9))
    loop.finish()
    assert len(loop.tokens(1)) == 3
    assert loop.ends(1) == ["INTERNAL"]


@pytest.mark.parametrize(
    ("device", "outcome", "code"),
    [
        ("cpu", Outcome.FAILED, "INTERNAL"),
        ("cpu", Outcome.NO_MEMORY, "INTERNAL"),
        ("GPU 0", Outcome.FAILED, "CUDA_ERROR"),
        ("GPU 0", Outcome.NO_MEMORY, "VRAM_OOM"),
    ],
)
def test_a_failure_has_the_code_for_its_device(
    loop: HandLoop, device: str, outcome: Outcome, code: str
) -> None:
    """A GPU that failed, a GPU without free memory, or a failure of the CPU."""
    loop.model.facts = msgspec.structs.replace(loop.model.facts, device=device)
    loop.post(run_message(1))
    loop.model.next_outcome = outcome
    loop.turn()
    assert loop.ends(1) == [code]
    assert loop.cells_held() == [0, 0, 0, 0]


def test_cells_that_no_run_holds_are_reported_and_freed(loop: HandLoop) -> None:
    """An idle engine finds them when it is pinged."""
    loop.model.trim(2, 0)
    loop.model.decode(Batch([1, 2, 3], [0, 1, 2], [2, 2, 2], [False] * 3), abort_mode=AbortMode.NONE)
    loop.post(Ping())
    assert loop.turn_idle()
    assert loop.faults == [AuditFault(None, "sequence 2 held 3 KV cells instead of 0", repaired=True)]
    assert loop.cells_held() == [0, 0, 0, 0]


@pytest.mark.parametrize("stray", range(1, 4))
def test_stray_cells_of_any_sequence_are_found_while_another_run_decodes(loop: HandLoop, stray: int) -> None:
    """Within as many steps as there are sequence ids, since a step asks for one of those without cells."""
    loop.post(run_message(1, max_tokens=100))
    in_decode(loop, 1)
    loop.model.trim(stray, 0)
    loop.model.decode(Batch([1, 2], [0, 1], [stray] * 2, [False] * 2), abort_mode=AbortMode.NONE)
    loop.turn(loop.model.sequence_ids)
    assert loop.faults == [AuditFault(None, f"sequence {stray} held 2 KV cells instead of 0", repaired=True)]


def test_an_end_has_every_sequence_audited_before_it_is_reported(make_loop: MakeLoop) -> None:
    """As a stop has: what is reported as free is free."""
    for stray in range(2, make_loop().model.sequence_ids):
        loop = make_loop()
        loop.post(run_message(1, max_tokens=3), run_message(2, max_tokens=100))
        in_decode(loop, 1)
        loop.model.decode(Batch([1], [0], [stray], [False]), abort_mode=AbortMode.NONE)
        while not loop.ends(1):
            loop.turn()
        kinds = [type(message) for message in loop.sent]
        assert AuditFault in kinds[: len(kinds) - 1 - kinds[::-1].index(Step)], stray


@pytest.mark.parametrize("cells", [2, 400])
def test_a_run_whose_cells_are_not_what_they_should_be_continues_with_right_ones(
    make_loop: MakeLoop, cells: int
) -> None:
    """Too many are trimmed; if there are too few, all are computed again. Its tokens are those of the run alone."""
    loop = make_loop()
    loop.post(run_message(1, LONG, max_tokens=30))
    in_decode(loop, 1)
    held = loop.model.cells(0)
    loop.model.disturb(0, cells - held)
    loop.post(Stop(9))
    loop.turn()
    (fault,) = loop.faults
    assert (fault.run, fault.repaired) == (1, True)
    assert f"held {cells} KV cells instead of {held}" in fault.message
    loop.finish()
    assert loop.tokens(1) == alone(make_loop, 1, LONG, max_tokens=30)


def test_a_sequence_that_stays_dirty_is_not_used_until_it_is_clean(loop: HandLoop) -> None:
    """It is reported once; runs get the other ids."""
    loop.post(run_message(1, generates("a", leak=4)))
    loop.finish()
    (fault,) = loop.faults
    assert (fault.run, fault.repaired) == (1, False)
    assert loop.ends(1) == ["stop"]
    loop.post(run_message(2, max_tokens=9))
    loop.turn()
    assert loop.model.cells(1) > 0, "it got the next id"
    loop.post(Ping(runs=(2,)), Ping(runs=(2,)))
    loop.finish()
    assert len(loop.faults) == 1
    assert loop.cells_held() == [0, 0, 0, 0]
    loop.post(run_message(3, max_tokens=9))
    loop.turn()
    assert loop.model.cells(0) > 0, "it is used again"


def test_a_run_in_a_sequence_that_cannot_be_trimmed_moves_to_another(make_loop: MakeLoop) -> None:
    """It loses no token."""
    loop = make_loop()
    script = json.dumps({"leak": 1000})
    loop.post(run_message(1, script, max_tokens=30))
    in_decode(loop, 1)
    loop.turn(3)
    loop.model.disturb(0, -2)
    loop.post(Stop(9))
    loop.turn()
    assert [(fault.run, fault.repaired) for fault in loop.faults] == [(1, False)]
    loop.turn()
    assert loop.model.cells(1) > 0
    for _ in range(200):
        if loop.ends(1):
            break
        loop.turn_idle()
    assert loop.tokens(1) == alone(make_loop, 1, script, max_tokens=30)


def test_an_engine_without_a_clean_sequence_gives_up(make_loop: MakeLoop) -> None:
    """The next engine starts clean, and continues its runs."""
    loop = make_loop(parallel=1, exact=True)
    loop.post(run_message(1, generates("a", leak=1000)))
    loop.finish()
    loop.post(run_message(2))
    with pytest.raises(NoUsableSequence):
        loop.turn()


def test_a_run_that_the_front_does_not_know_is_freed_and_reported(loop: HandLoop) -> None:
    """The engine computes no run that the front does not know; the others continue."""
    loop.post(run_message(1, max_tokens=30), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.post(Ping(runs=(2,)))
    loop.turn()
    assert loop.faults == [AuditFault(1, "run 1 is unknown to the front", repaired=True)]
    assert loop.model.cells(0) == 0
    loop.finish()
    assert (loop.ends(1), loop.ends(2)) == ([], ["length"])
    assert loop.model.samplers_open == 0
