"""The engine's loop, turned by hand: steps and their reports, natural ends, and sequence ids."""

import msgspec
import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from tests.loop_runs import LONG, alone, generates, in_decode
from worker_orcd.engine.model import Outcome
from worker_orcd.protocol.messages import Ping, Pong, Stop
from worker_orcd.sampling import SamplingParams
from worker_orcd.testing.scripted import END, FIRST_WORD


def test_nothing_to_do_is_no_step(loop: HandLoop) -> None:
    """The process then waits for messages."""
    assert loop.turn_idle()
    assert loop.sent == []


def test_tokens_stream_in_order_and_then_the_run_ends(loop: HandLoop) -> None:
    """One token per step; the report of the last step has the end, and counts of zero."""
    loop.post(run_message(1, generates("Hello"), max_tokens=50))
    loop.finish()
    assert loop.text(1) == "Hello"
    assert loop.tokens(1) == list(b"Hello")
    assert loop.ends(1) == ["stop"]
    assert all(len(step.tokens) <= 1 for step in loop.steps)
    last = loop.steps[-1]
    assert (last.cells_used, last.sequences_used) == (0, 0)


def test_every_turn_with_something_to_compute_sends_one_report(loop: HandLoop) -> None:
    """However many runs are in the step."""
    loop.post(*(run_message(n, max_tokens=3) for n in range(1, 4)))
    turns = 0
    while not loop.turn_idle():
        turns += 1
        assert len(loop.steps) == turns


def test_runs_share_steps(loop: HandLoop) -> None:
    """Once both decode, one step generates a token of each."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.turn()
    assert sorted(out.run for out in loop.steps[-1].tokens) == [1, 2]
    assert loop.model.steps[-1].batch.sequences == [0, 1]
    loop.finish()
    assert len(loop.tokens(1)) == len(loop.tokens(2)) == 9


def test_tokens_of_a_run_do_not_depend_on_its_neighbours(loop: HandLoop, make_loop: MakeLoop) -> None:
    """Seven runs in four sequences, in two waves: each has the tokens that it has alone."""
    loop.post(*(run_message(n, "y" * (7 * n), max_tokens=3 + n) for n in range(1, 5)))
    loop.finish()
    loop.post(*(run_message(n, "z" * (90 - n), max_tokens=3 + n) for n in range(5, 8)))
    loop.finish()
    for n in range(1, 5):
        assert loop.tokens(n) == alone(make_loop, n, "y" * (7 * n), max_tokens=3 + n)
    for n in range(5, 8):
        assert loop.tokens(n) == alone(make_loop, n, "z" * (90 - n), max_tokens=3 + n)


def test_decoding_continues_beside_a_long_prompt(loop: HandLoop) -> None:
    """Every step generates a token of the earlier run (G12)."""
    loop.post(run_message(1, max_tokens=100))
    in_decode(loop, 1)
    loop.post(run_message(2, LONG, max_tokens=2))
    while not loop.tokens(2):
        before = len(loop.tokens(1))
        loop.turn()
        assert len(loop.tokens(1)) == before + 1


def test_progress_of_a_prompt_is_reported_until_it_is_computed(loop: HandLoop) -> None:
    """It grows to the last prompt token, and not beyond."""
    message = run_message(1, LONG * 3, max_tokens=3)
    loop.post(message)
    loop.finish()
    seen = [progress.prompt_processed for step in loop.steps for progress in step.progress]
    assert seen == sorted(set(seen))
    assert seen[-1] == len(message.prompt)
    assert len(seen) > 2


def test_a_prompt_of_one_token_is_prefilled_and_then_decoded(loop: HandLoop) -> None:
    """The shortest prompt."""
    loop.post(msgspec.structs.replace(run_message(1, max_tokens=1), prompt=(FIRST_WORD,)))
    loop.turn()
    assert len(loop.tokens(1)) == 1
    assert loop.ends(1) == ["length"]
    assert [progress.prompt_processed for progress in loop.steps[0].progress] == [1]


def test_reports_carry_the_counts_and_a_prediction(loop: HandLoop) -> None:
    """Cells and sequences by the model's own count, and how long the next step is predicted to take."""
    loop.post(run_message(1, LONG, max_tokens=5), run_message(2, max_tokens=50))
    in_decode(loop, 1, 2)
    report = loop.steps[-1]
    assert report.cells_used == sum(loop.cells_held()) > 400
    assert report.sequences_used == 2
    assert report.next_ms > 0
    assert report.duration_ms > 0
    assert not report.aborted


def test_the_end_of_generation_token_is_no_token(loop: HandLoop) -> None:
    """Not reported and not counted."""
    loop.post(run_message(1, generates("ab")))
    loop.finish()
    assert loop.tokens(1) == [97, 98]
    assert loop.ends(1) == ["stop"]


def test_a_run_that_ends_at_once_has_no_tokens(loop: HandLoop) -> None:
    """Its report has the end and no token."""
    loop.post(run_message(1, generates("")))
    loop.finish()
    assert loop.steps[-1].tokens == ()
    assert loop.ends(1) == ["stop"]


def test_with_ignore_eos_the_end_of_generation_token_is_one_like_any_other(loop: HandLoop) -> None:
    """It counts as a token, and adds no text."""
    loop.post(run_message(1, generates("ab"), sampling=SamplingParams(ignore_eos=True), max_tokens=5))
    loop.finish()
    assert loop.tokens(1) == [97, 98, END, END, END]
    assert loop.text(1) == "ab"
    assert loop.ends(1) == ["length"]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_a_run_ends_at_max_tokens(loop: HandLoop, most: int) -> None:
    """Exactly."""
    loop.post(run_message(1, max_tokens=most))
    loop.finish()
    assert len(loop.tokens(1)) == most
    assert loop.ends(1) == ["length"]


def test_a_run_ends_at_its_stop_sequence_and_shows_nothing_of_it(loop: HandLoop) -> None:
    """Also across token borders; the tokens of the stop sequence count."""
    loop.post(run_message(1, generates("one STOP two"), stop=("STOP",), max_tokens=50))
    loop.finish()
    assert loop.text(1) == "one "
    assert len(loop.tokens(1)) == len("one STOP")
    assert loop.ends(1) == ["stop_sequence"]


def test_a_stop_sequence_on_the_last_token_allowed_is_a_stop_sequence(loop: HandLoop) -> None:
    """The reason is the stop sequence, not the length."""
    loop.post(run_message(1, generates("abc"), stop=("bc",), max_tokens=3))
    loop.finish()
    assert loop.ends(1) == ["stop_sequence"]
    assert loop.text(1) == "a"


def test_held_text_is_released_at_the_end_of_generation(loop: HandLoop) -> None:
    """As a last piece of text without a token."""
    loop.post(run_message(1, generates("one ST"), stop=("STOP",), max_tokens=50))
    loop.finish()
    assert loop.text(1) == "one ST"
    last = loop.steps[-1].tokens
    assert [(out.token, out.text) for out in last] == [(None, "ST")]
    assert len(loop.tokens(1)) == 6


def test_held_text_is_released_with_the_last_token_allowed(loop: HandLoop) -> None:
    """The last token has it."""
    loop.post(run_message(1, generates("one STOP"), stop=("STOP",), max_tokens=6))
    loop.finish()
    assert loop.text(1) == "one ST"
    assert loop.ends(1) == ["length"]
    assert len(loop.tokens(1)) == 6


def test_a_character_of_several_tokens_is_released_whole(loop: HandLoop) -> None:
    """The tokens before its last byte have no text."""
    loop.post(run_message(1, generates("a👋b"), max_tokens=50))
    loop.finish()
    shown = [out.text for step in loop.steps for out in step.tokens]
    assert shown == ["a", "", "", "", "👋", "b"]


def test_an_ended_run_s_slot_is_free_for_the_next(loop: HandLoop) -> None:
    """More runs than sequences, one after the other."""
    for run in range(1, 12):
        loop.post(run_message(run, max_tokens=2))
        loop.finish()
        assert loop.ends(run) == ["length"]
    assert loop.cells_held() == [0, 0, 0, 0]
    assert loop.model.samplers_open == 0


def test_a_report_predicts_the_time_of_the_next_step(loop: HandLoop) -> None:
    """Not of the step that has run: after the last step of a prompt comes a decode step."""
    loop.warm_up()
    loop.post(run_message(1, LONG, max_tokens=9))
    loop.turn()
    assert loop.steps[-1].tokens
    assert 0 < loop.steps[-1].next_ms <= 5
    loop.post(run_message(2, LONG * 3, max_tokens=1))
    loop.finish()
    assert loop.steps[-1].ended
    assert loop.steps[-1].next_ms == pytest.approx(7 * 64), (
        "what the whole tiles of an arriving prompt would take"
    )


def test_the_time_of_the_first_step_is_predicted_from_the_warm_up(loop: HandLoop) -> None:
    """It comes from the warm-up; `Ready` has it."""
    loop.model.prefill_row_ms = 100.0
    loop.warm_up()
    assert loop.next_ms == pytest.approx(800.0)


def test_an_engine_that_gets_the_cost_of_steps_does_not_measure_it(
    loop: HandLoop, make_loop: MakeLoop
) -> None:
    """A killed one's successor: it predicts the same and is ready after one row."""
    loop.model.prefill_row_ms = 3.0
    loop.loop.warm_up.first_rows()
    costs = loop.loop.warm_up.measure()
    successor = make_loop()
    successor.loop.warm_up.first_rows(known=costs)
    assert [len(step.batch.sequences) for step in successor.model.steps] == [1]
    assert successor.next_ms == loop.next_ms != make_loop().next_ms


def test_before_the_cost_of_a_prompt_s_rows_is_measured_they_count_as_rows_of_their_own(
    loop: HandLoop,
) -> None:
    """So the first step of a job that comes at once is rather too short."""
    loop.model.prefill_row_ms = 40.0  # That of a row alone.
    loop.loop.warm_up.first_rows()
    assert loop.next_ms == pytest.approx(12 * 40.0)
    loop.model.prefill_row_ms = 3.0
    loop.loop.warm_up.measure()
    assert loop.next_ms == pytest.approx(2 * 64 * 3.0)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_message_ends_the_measuring_and_the_job_begins_at_once(
    make_loop: MakeLoop, recurrent: bool
) -> None:
    """What was measured by then counts; no cells are held."""
    loop = make_loop(recurrent=recurrent)
    loop.loop.warm_up.first_rows()
    loop.byte.set()
    assert [rows for rows, _ in loop.loop.warm_up.measure()] == [1]
    assert loop.cells_held() == [0, 0, 0, 0]
    loop.post(run_message(1, LONG, max_tokens=2))
    loop.finish()
    assert loop.ends(1) == ["length"]


def test_a_successor_measures_only_what_is_not_known(loop: HandLoop, make_loop: MakeLoop) -> None:
    """If a job ended the measuring of the engine before."""
    loop.loop.warm_up.first_rows()
    loop.byte.set()
    known = loop.loop.warm_up.measure()
    successor = make_loop()
    successor.loop.warm_up.first_rows(known)
    assert [rows for rows, _ in successor.loop.warm_up.measure()] == [1, 16, 64]
    assert [len(step.batch.sequences) for step in successor.model.steps] == [1, 16, 64]


def test_on_a_slow_machine_only_what_takes_seconds_is_measured(make_loop: MakeLoop) -> None:
    """The supervisor must not take the engine for stuck; the jobs show the rest."""
    for row_ms, measured in ((100.0, [1, 16, 64]), (300.0, [1, 16]), (1500.0, [1])):
        loop = make_loop()
        loop.model.prefill_row_ms = row_ms
        loop.loop.warm_up.first_rows()
        assert [rows for rows, _ in loop.loop.warm_up.measure()] == measured


def test_weights_that_come_from_a_slow_disk_do_not_make_rows_seem_expensive(loop: HandLoop) -> None:
    """The first row waits for them. So the second one shows what a row costs, however long the first took."""
    loop.model.prefill_row_ms = 8000.0
    loop.loop.warm_up.first_rows(progressed=lambda: setattr(loop.model, "prefill_row_ms", 2.0))
    assert loop.next_ms < 500
    assert [rows for rows, _ in loop.loop.warm_up.measure()] == [1, 16, 64]


def test_warming_up_holds_no_cells_and_measures_the_cost_of_steps(loop: HandLoop) -> None:
    """The first step of the first job is planned by the machine's measured speed."""
    loop.model.prefill_row_ms = 2.0
    loop.warm_up()
    assert loop.cells_held() == [0, 0, 0, 0]
    assert loop.sent == []
    loop.post(run_message(1, LONG * 2))
    loop.turn()
    assert loop.steps[0].duration_ms == pytest.approx(3 * 64 * 2)
    assert loop.model.steps[-1].rows_of(0) == 3 * 64


@pytest.mark.parametrize(
    ("outcome", "reported"),
    [
        (Outcome.DONE, "done"),
        (Outcome.NO_ROOM, "no_room"),
        (Outcome.NO_MEMORY, "failed"),
        (Outcome.FAILED, "failed"),
    ],
)
def test_a_report_says_how_its_step_ended(loop: HandLoop, outcome: Outcome, reported: str) -> None:
    """A step that failed or found no room is not `done`."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.model.next_outcome = outcome
    loop.turn()
    assert loop.steps[-1].outcome == reported


def test_a_ping_is_answered_between_two_steps(loop: HandLoop) -> None:
    """With or without something to compute."""
    loop.post(Ping())
    assert loop.turn_idle()
    assert loop.sent == [Pong()]


def test_the_lowest_free_id_is_taken_first(loop: HandLoop) -> None:
    """llama.cpp is fastest with small sequence ids without gaps."""
    loop.post(*(run_message(n, max_tokens=30) for n in (1, 2, 3)))
    in_decode(loop, 1, 2, 3)
    loop.post(Stop(2))
    loop.turn()
    loop.post(run_message(4, max_tokens=30))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, True, True, False]


def test_dense_ids_close_their_gaps_and_no_token_changes(make_loop: MakeLoop) -> None:
    """When a run in the middle ends, the run with the last id moves to its id, with all cells."""
    loop = make_loop(exact=True)
    loop.post(*(run_message(n, "q" * n, max_tokens=10) for n in (1, 2, 3, 4)))
    in_decode(loop, 1, 2, 3, 4)
    loop.post(Stop(2))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, True, True, False]
    loop.post(Stop(1))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, True, False, False]
    loop.post(run_message(5, "q" * 5, max_tokens=10))
    loop.finish()
    for n in (3, 4, 5):
        assert loop.tokens(n) == alone(make_loop, n, "q" * n, max_tokens=10)
    assert loop.cells_held() == [0, 0, 0, 0]


def test_dense_ids_close_several_gaps_of_one_step(make_loop: MakeLoop) -> None:
    """Three of four runs end by themselves in the same step."""
    loop = make_loop(exact=True)
    loop.post(*(run_message(n, "q", max_tokens=30 if n == 4 else 3) for n in (1, 2, 3, 4)))
    while not (loop.ends(1) and loop.ends(2) and loop.ends(3)):
        loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [False, False, False, True]
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, False, False, False]
    loop.finish()
    assert loop.tokens(4) == alone(make_loop, 4, "q", max_tokens=30)


def test_where_a_move_fails_the_gap_stays_and_no_token_changes(make_loop: MakeLoop) -> None:
    """Steps are slower then, but still correct."""
    loop = make_loop(exact=True)
    loop.model.moves_fail = True
    loop.post(*(run_message(n, "q" * n, max_tokens=10) for n in (1, 2, 3, 4)))
    in_decode(loop, 1, 2, 3, 4)
    loop.post(Stop(2))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, False, True, True]
    loop.post(run_message(5, "q" * 5, max_tokens=10))
    loop.finish()
    for n in (1, 3, 4, 5):
        assert loop.tokens(n) == alone(make_loop, n, "q" * n, max_tokens=10)
    assert loop.cells_held() == [0, 0, 0, 0]


def test_without_need_for_dense_ids_nothing_is_moved(loop: HandLoop) -> None:
    """A move costs time where it brings nothing."""
    loop.post(*(run_message(n, max_tokens=30) for n in (1, 2, 3)))
    in_decode(loop, 1, 2, 3)
    loop.post(Stop(1))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [False, True, True, False]
