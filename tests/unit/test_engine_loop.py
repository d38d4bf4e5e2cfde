"""The engine's loop, turned by hand: what a step is, and what a stop, an abort and a failure do to it."""

import itertools
import json
from typing import Any

import msgspec
import pytest

from tests.fakes import QUICK, HandLoop, MakeLoop, run_message
from worker_orcd.engine.ledger import NoUsableSequence
from worker_orcd.engine.model import AbortMode, Batch, Outcome
from worker_orcd.engine.planner import SHORT_MS
from worker_orcd.engine.scheduler import GROWTH_CELLS
from worker_orcd.protocol.messages import AuditFault, FromEngine, Ping, Pong, Started, Step, Stop, Stopped
from worker_orcd.sampling import SamplingParams
from worker_orcd.testing.scripted import END, FIRST_WORD

LONG = "x" * 400


@pytest.fixture
def loop(make_loop: MakeLoop) -> HandLoop:
    """A loop with four sequences."""
    return make_loop()


def says(text: str, **more: object) -> str:
    """A script that says a text, a byte a token."""
    return json.dumps({"text": text, "token_ms": 0, "row_ms": 0, **more})


def alone(make_loop: MakeLoop, run: int, prompt: str = "", **given: Any) -> list[int]:
    """The tokens of a run that has the engine to itself."""
    it = make_loop()
    it.post(run_message(run, prompt, **given))
    it.finish()
    return it.tokens(run)


def in_decode(it: HandLoop, *runs: int) -> None:
    """Turn until each of these runs has generated a token."""
    for _ in range(200):
        if all(it.tokens(run) for run in runs):
            return
        it.turn()
    raise AssertionError("they never begin")


def interrupted_step(it: HandLoop) -> None:
    """One turn whose step the byte aborts, if it is abortable."""
    it.model.during_step = it.byte.set
    it.turn()
    it.model.during_step = lambda: None


# Generating.


def test_nothing_to_do_is_no_step(loop: HandLoop) -> None:
    """The process then waits for messages."""
    assert loop.turn_idle()
    assert loop.sent == []


def test_tokens_stream_in_order_and_then_the_run_ends(loop: HandLoop) -> None:
    """One token for each step; the end is in the report of the last one, with the counts at zero."""
    loop.post(run_message(1, says("Hello"), max_tokens=50))
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
    """Once both decode, one step brings a token of each, and neither is what it is because of the other."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.turn()
    assert sorted(out.run for out in loop.steps[-1].tokens) == [1, 2]
    assert loop.model.steps[-1].batch.sequences == [0, 1]
    loop.finish()
    assert len(loop.tokens(1)) == len(loop.tokens(2)) == 9


def test_tokens_of_a_run_do_not_depend_on_its_neighbours(loop: HandLoop, make_loop: MakeLoop) -> None:
    """Seven runs in four sequences, in two waves: each as if alone."""
    loop.post(*(run_message(n, "y" * (7 * n), max_tokens=3 + n) for n in range(1, 5)))
    loop.finish()
    loop.post(*(run_message(n, "z" * (90 - n), max_tokens=3 + n) for n in range(5, 8)))
    loop.finish()
    for n in range(1, 5):
        assert loop.tokens(n) == alone(make_loop, n, "y" * (7 * n), max_tokens=3 + n)
    for n in range(5, 8):
        assert loop.tokens(n) == alone(make_loop, n, "z" * (90 - n), max_tokens=3 + n)


def test_decoding_continues_beside_a_long_prompt(loop: HandLoop) -> None:
    """Every step has a token of the stream that was there first (G12)."""
    loop.post(run_message(1, max_tokens=100))
    in_decode(loop, 1)
    loop.post(run_message(2, LONG, max_tokens=2))
    while not loop.tokens(2):
        before = len(loop.tokens(1))
        loop.turn()
        assert len(loop.tokens(1)) == before + 1


def test_progress_of_a_prompt_is_reported_until_it_is_read(loop: HandLoop) -> None:
    """Growing, to the last prompt token, and not beyond."""
    message = run_message(1, LONG * 3, max_tokens=3)
    loop.post(message)
    loop.finish()
    seen = [progress.prompt_processed for step in loop.steps for progress in step.progress]
    assert seen == sorted(set(seen))
    assert seen[-1] == len(message.prompt)
    assert len(seen) > 2


def test_a_prompt_of_one_token_is_read_and_then_decoded(loop: HandLoop) -> None:
    """The shortest there is."""
    loop.post(msgspec.structs.replace(run_message(1, max_tokens=1), prompt=(FIRST_WORD,)))
    loop.turn()
    assert len(loop.tokens(1)) == 1
    assert loop.ends(1) == ["length"]
    assert [progress.prompt_processed for progress in loop.steps[0].progress] == [1]


def test_reports_carry_the_counts_and_a_prediction(loop: HandLoop) -> None:
    """Cells and sequences by the model's own count, and how long the next step is thought to take."""
    loop.post(run_message(1, LONG, max_tokens=5), run_message(2, max_tokens=50))
    in_decode(loop, 1, 2)
    report = loop.steps[-1]
    assert report.cells_used == sum(loop.cells_held()) > 400
    assert report.sequences_used == 2
    assert report.next_ms > 0
    assert report.duration_ms > 0
    assert not report.aborted


# Ends.


def test_the_end_of_generation_token_is_no_token(loop: HandLoop) -> None:
    """Not reported and not counted."""
    loop.post(run_message(1, says("ab")))
    loop.finish()
    assert loop.tokens(1) == [97, 98]
    assert loop.ends(1) == ["stop"]


def test_a_run_that_ends_at_once_has_no_tokens(loop: HandLoop) -> None:
    """Its report has an end and nothing else of it."""
    loop.post(run_message(1, says("")))
    loop.finish()
    assert loop.steps[-1].tokens == ()
    assert loop.ends(1) == ["stop"]


def test_with_ignore_eos_the_end_of_generation_token_is_one_like_any_other(loop: HandLoop) -> None:
    """It counts, and adds no text."""
    loop.post(run_message(1, says("ab"), sampling=SamplingParams(ignore_eos=True), max_tokens=5))
    loop.finish()
    assert loop.tokens(1) == [97, 98, END, END, END]
    assert loop.text(1) == "ab"
    assert loop.ends(1) == ["length"]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_a_run_ends_at_its_length(loop: HandLoop, most: int) -> None:
    """To the token."""
    loop.post(run_message(1, max_tokens=most))
    loop.finish()
    assert len(loop.tokens(1)) == most
    assert loop.ends(1) == ["length"]


def test_a_run_ends_at_its_stop_sequence_and_shows_nothing_of_it(loop: HandLoop) -> None:
    """Over token borders; its tokens are counted all the same."""
    loop.post(run_message(1, says("one STOP two"), stop=("STOP",), max_tokens=50))
    loop.finish()
    assert loop.text(1) == "one "
    assert len(loop.tokens(1)) == len("one STOP")
    assert loop.ends(1) == ["stop_sequence"]


def test_a_stop_sequence_on_the_last_token_allowed_is_a_stop_sequence(loop: HandLoop) -> None:
    """The text says why it ended, not the count."""
    loop.post(run_message(1, says("abc"), stop=("bc",), max_tokens=3))
    loop.finish()
    assert loop.ends(1) == ["stop_sequence"]
    assert loop.text(1) == "a"


def test_text_held_back_comes_out_with_the_end_of_generation(loop: HandLoop) -> None:
    """As a last piece of text that is no token."""
    loop.post(run_message(1, says("one ST"), stop=("STOP",), max_tokens=50))
    loop.finish()
    assert loop.text(1) == "one ST"
    last = loop.steps[-1].tokens
    assert [(out.token, out.text) for out in last] == [(None, "ST")]
    assert len(loop.tokens(1)) == 6


def test_text_held_back_comes_out_with_the_last_token_allowed(loop: HandLoop) -> None:
    """In the same token."""
    loop.post(run_message(1, says("one STOP"), stop=("STOP",), max_tokens=6))
    loop.finish()
    assert loop.text(1) == "one ST"
    assert loop.ends(1) == ["length"]
    assert len(loop.tokens(1)) == 6


def test_a_character_over_several_tokens_comes_out_whole(loop: HandLoop) -> None:
    """The tokens before its last byte bring no text."""
    loop.post(run_message(1, says("a👋b"), max_tokens=50))
    loop.finish()
    shown = [out.text for step in loop.steps for out in step.tokens]
    assert shown == ["a", "", "", "", "👋", "b"]


def test_an_ended_run_s_place_is_free_for_the_next(loop: HandLoop) -> None:
    """More runs than sequences, one after the other."""
    for run in range(1, 12):
        loop.post(run_message(run, max_tokens=2))
        loop.finish()
        assert loop.ends(run) == ["length"]
    assert loop.cells_held() == [0, 0, 0, 0]
    assert loop.model.samplers_open == 0


# Stops.


def test_a_confirmation_says_what_was_held_and_that_it_is_free(loop: HandLoop) -> None:
    """By the model's own count, of this run and of all (G4)."""
    loop.post(run_message(1, max_tokens=50))
    in_decode(loop, 1)
    held = sum(loop.cells_held())
    loop.post(Stop(1))
    assert loop.turn_idle()
    (confirmation,) = loop.stopped
    assert (confirmation.run, confirmation.cells_before, confirmation.cells_after) == (1, held, 0)
    assert (confirmation.cells_used, confirmation.sequences_used) == (0, 0)
    assert loop.model.samplers_open == 0


def test_what_a_run_held_is_free_at_the_moment_in_which_its_end_is_sent(loop: HandLoop) -> None:
    """Freed before the terminal event, checked while the message is sent: for a stop and for a natural end (G4)."""
    kv_usage: list[list[int]] = []

    def look(message: FromEngine) -> None:
        if isinstance(message, Stopped) or (isinstance(message, Step) and message.ended):
            kv_usage.append(loop.cells_held())

    loop.on_send = look
    loop.post(run_message(1, max_tokens=50), run_message(2, max_tokens=1))
    in_decode(loop, 1)
    loop.post(Stop(1))
    loop.finish()
    assert len(kv_usage) == 2
    assert kv_usage[0][0] > 0
    assert kv_usage[0][1] == 0, "run 2 ended by itself and held nothing when that was said"
    assert kv_usage[1] == [0, 0, 0, 0]


def test_a_stopped_run_has_no_token_afterwards(loop: HandLoop) -> None:
    """Nothing of it is computed any more; its neighbour goes on."""
    loop.post(run_message(1, max_tokens=50), run_message(2, max_tokens=50))
    in_decode(loop, 1, 2)
    reported = loop.tokens(1)
    loop.post(Stop(1))
    loop.turn()
    loop.turn()
    assert loop.tokens(1) == reported
    assert loop.ends(1) == []
    assert 0 not in loop.model.steps[-1].batch.sequences


def test_a_stop_of_a_run_that_is_not_here_is_answered(loop: HandLoop) -> None:
    """Unknown, or ended before: it holds nothing, and the confirmation says so."""
    loop.post(run_message(1, max_tokens=1))
    loop.finish()
    loop.post(Stop(1), Stop(99))
    loop.turn_idle()
    assert [(s.run, s.cells_before, s.cells_after) for s in loop.stopped] == [(1, 0, 0), (99, 0, 0)]


def test_a_stop_right_behind_its_run_computes_nothing(loop: HandLoop) -> None:
    """Both in one look at the messages."""
    loop.post(run_message(1), Stop(1))
    assert loop.turn_idle()
    assert loop.model.steps == []
    assert [message.run for message in loop.stopped] == [1]


def test_a_second_stop_is_answered_like_the_first(loop: HandLoop) -> None:
    """And frees nothing of anybody else's."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.post(Stop(1), Stop(1))
    loop.turn()
    assert [message.cells_after for message in loop.stopped] == [0, 0]
    assert loop.stopped[1].cells_before == 0
    assert loop.steps[-1].sequences_used == 1


def test_a_stop_in_prefill_says_how_far_the_prompt_was_read(loop: HandLoop) -> None:
    """Computed tokens, not those of a step that was undone."""
    loop.post(run_message(1, LONG * 2, max_tokens=2))
    loop.turn()
    read = loop.steps[-1].progress[-1].prompt_processed
    interrupted_step(loop)
    assert loop.steps[-1].aborted
    loop.post(Stop(1))
    loop.turn_idle()
    assert loop.stopped[0].prompt_processed == read
    assert loop.stopped[0].cells_before == read


def test_ages_in_a_confirmation_are_from_the_loop_s_clock(loop: HandLoop) -> None:
    """Stopped no later than freed, both before now."""
    loop.post(run_message(1, max_tokens=9))
    in_decode(loop, 1)
    trim = loop.model.trim

    def slow_trim(sequence: int, length: int) -> bool:
        loop.clock.now += 0.003
        return trim(sequence, length)

    loop.model.trim = slow_trim  # type: ignore[method-assign]  # A model that takes its time to free cells.
    loop.post(Stop(1))
    loop.turn_idle()
    confirmation = loop.stopped[0]
    assert confirmation.stopped_ago_ms == pytest.approx(3.0)
    assert confirmation.freed_ago_ms == pytest.approx(0.0)


# Interrupted steps.


def test_a_stop_that_arrives_after_the_look_at_messages_ends_that_very_step(loop: HandLoop) -> None:
    """The byte is cleared *before* messages are looked at: so a stop is seen in this turn, or ends its step."""
    loop.post(run_message(1, LONG * 2), run_message(2))
    loop.turn()

    def arrive() -> None:
        loop.after_drain = lambda: None
        loop.post(Stop(1))

    loop.after_drain = arrive
    loop.turn()
    assert loop.model.steps[-1].outcome is Outcome.ABORTED
    assert loop.stopped == []
    loop.turn()
    assert [message.run for message in loop.stopped] == [1]


def test_a_stop_that_arrived_before_the_look_does_not_end_the_step_after_it(loop: HandLoop) -> None:
    """Its byte is cleared: the neighbours' step is not done twice."""
    loop.post(run_message(1, LONG), run_message(2, LONG))
    loop.turn()
    loop.post(Stop(1))
    loop.turn()
    assert [message.run for message in loop.stopped] == [1]
    assert loop.model.steps[-1].outcome is Outcome.DONE


def test_the_byte_is_cleared_before_messages_are_looked_at(loop: HandLoop) -> None:
    """In this order: seen from the look itself."""
    seen: list[bool] = []
    loop.post(run_message(1), Stop(9))
    loop.after_drain = lambda: seen.append(loop.byte.is_set())
    assert loop.byte.is_set()
    loop.turn()
    assert seen == [False]


def test_an_interrupted_step_is_undone_and_reported_as_such(loop: HandLoop) -> None:
    """No token, no progress, no end; cells as before it."""
    loop.post(run_message(1, LONG * 2, max_tokens=2), run_message(2, max_tokens=50))
    in_decode(loop, 2)
    before = loop.cells_held()
    interrupted_step(loop)
    report = loop.steps[-1]
    assert report.aborted
    assert (report.tokens, report.progress, report.ended) == ((), (), ())
    assert loop.cells_held() == before
    assert report.cells_used == sum(before)


def test_an_interrupted_step_is_done_again_with_identical_tokens_for_all(
    loop: HandLoop, make_loop: MakeLoop
) -> None:
    """Every second step aborted, one run stopped half-way: the others lose, double and change nothing (G6)."""
    lengths = {1: 300, 2: 5, 3: 150}
    loop.post(*(run_message(n, "p" * length, max_tokens=12) for n, length in lengths.items()))
    loop.post(run_message(4, LONG, max_tokens=12))
    loop.model.decode_ms = 8.0
    loop.model.during_step = loop.byte.set
    loop.turn(9)
    loop.post(Stop(4))
    loop.finish()
    assert sum(step.aborted for step in loop.steps) >= 10
    assert len(loop.stopped) == 1
    for n, length in lengths.items():
        assert loop.tokens(n) == alone(make_loop, n, "p" * length, max_tokens=12)
        assert loop.ends(n) == ["length"]
    assert loop.cells_held() == [0, 0, 0, 0]


def test_the_step_after_an_interrupted_one_is_short_and_protected(loop: HandLoop) -> None:
    """A storm of cancels cannot starve the neighbours; being short, it keeps the next stop waiting for little."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(2)
    interrupted_step(loop)
    assert loop.model.steps[-1].outcome is Outcome.ABORTED
    assert loop.steps[-1].next_ms <= SHORT_MS
    interrupted_step(loop)
    protected = loop.model.steps[-1]
    assert protected.abort_mode is AbortMode.OVERDUE
    assert protected.outcome is Outcome.DONE
    interrupted_step(loop)
    assert loop.model.steps[-1].abort_mode is AbortMode.ANY
    assert loop.model.steps[-1].outcome is Outcome.ABORTED


def test_a_stop_that_is_overdue_ends_also_a_protected_step(loop: HandLoop) -> None:
    """A step that really takes longer than a stop may wait is aborted."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(2)
    interrupted_step(loop)
    loop.model.during_step = loop.byte.set_overdue
    loop.turn()
    assert loop.model.steps[-1].outcome is Outcome.ABORTED


def test_under_a_storm_every_second_step_is_done(loop: HandLoop) -> None:
    """With the byte set all the time, work goes on."""
    loop.model.decode_ms = 20.0
    loop.post(run_message(1, max_tokens=30))
    loop.model.during_step = loop.byte.set
    loop.finish(most=100)
    outcomes = [step.outcome for step in loop.model.steps]
    assert len(loop.tokens(1)) == 30
    assert outcomes.count(Outcome.ABORTED) >= 25
    pairs = itertools.pairwise(outcomes)
    assert (Outcome.ABORTED, Outcome.ABORTED) not in pairs


@pytest.mark.parametrize("decode_ms", [0.1, 4.0, 30.0, 300.0])
def test_a_step_can_be_interrupted_however_short_it_is_predicted_to_be(
    loop: HandLoop, decode_ms: float
) -> None:
    """A step predicted to take 10 ms may take 300; whether a stop waits for it is the front's to decide."""
    loop.model.decode_ms = decode_ms
    loop.post(run_message(1, max_tokens=30))
    in_decode(loop, 1)
    loop.turn(2)
    interrupted_step(loop)
    assert loop.model.steps[-1].abort_mode is AbortMode.ANY
    assert loop.steps[-1].aborted


def test_a_protected_step_has_only_as_many_decode_rows_as_are_sure_to_get_done(
    make_loop: MakeLoop,
) -> None:
    """With four runs of 40 ms a row it takes four steps; nobody is left out, and then all decode together again."""
    loop = make_loop()
    loop.model.decode_ms = 40.0
    loop.post(*(run_message(n, max_tokens=60) for n in range(1, 5)))
    in_decode(loop, 1, 2, 3, 4)
    loop.turn(20)
    reported = {n: len(loop.tokens(n)) for n in range(1, 5)}
    interrupted_step(loop)
    loop.turn(4)
    assert [len(step.batch.tokens) for step in loop.model.steps[-4:]] == [1, 1, 1, 1]
    assert {n: len(loop.tokens(n)) - reported[n] for n in range(1, 5)} == {1: 1, 2: 1, 3: 1, 4: 1}
    loop.turn()
    assert len(loop.model.steps[-1].batch.tokens) == 4


def test_the_prediction_in_a_report_is_that_of_the_next_step(loop: HandLoop) -> None:
    """Not of the one that has run: a decode step follows the last of a prompt."""
    loop.warm_up()
    loop.post(run_message(1, LONG, max_tokens=9))
    loop.turn()
    assert loop.steps[-1].tokens
    assert 0 < loop.steps[-1].next_ms <= 5
    loop.post(run_message(2, LONG * 3, max_tokens=1))
    loop.finish()
    assert loop.steps[-1].ended
    assert loop.steps[-1].next_ms == pytest.approx(500, rel=0.1), "what an arriving prompt would take"


def test_before_the_first_step_its_prediction_is_known(loop: HandLoop) -> None:
    """From warming up: `Ready` carries it."""
    loop.model.prefill_row_ms = 100.0
    loop.warm_up()
    assert loop.next_ms == pytest.approx(800.0)


def test_an_aborted_step_teaches_nothing_about_time(loop: HandLoop) -> None:
    """It was cut short: taken for a whole one it would make the next steps too long."""
    loop.post(run_message(1, LONG * 4, max_tokens=2))
    loop.turn(3)
    expected = loop.model.steps[-1].rows_of(0)
    for _ in range(6):
        loop.model.prefill_row_ms = 0.01
        interrupted_step(loop)
        loop.model.prefill_row_ms = 1.0
        if loop.steps[-1].aborted:
            loop.turn()
    assert loop.model.steps[-1].rows_of(0) <= expected


# Requeued runs.


def test_a_run_continues_from_what_was_generated_elsewhere(loop: HandLoop, make_loop: MakeLoop) -> None:
    """The rest is what it would have been: numbers, randomness and length continue, nothing is reported twice."""
    whole = alone(make_loop, 1, "abc", max_tokens=10)
    loop.post(run_message(1, "abc", max_tokens=10, generated=tuple(whole[:4])))
    loop.finish()
    assert loop.tokens(1) == whole[4:]
    assert loop.ends(1) == ["length"]


@pytest.mark.parametrize("carried", range(6))
def test_text_continues_in_the_middle_of_a_character_or_a_stop_sequence(loop: HandLoop, carried: int) -> None:
    """What was held back where the run comes from is held back here; together it is the whole text."""
    said = list("👋SToSTOP".encode())
    shown_before = ["", "", "", "", "👋", "👋", "👋"][carried]
    loop.post(
        run_message(1, says("👋SToSTOP"), generated=tuple(said[:carried]), stop=("STOP",), max_tokens=50)
    )
    loop.finish()
    assert shown_before + loop.text(1) == "👋STo"
    assert loop.ends(1) == ["stop_sequence"]
    assert loop.tokens(1) == said[carried:]


def test_progress_of_a_requeued_run_counts_prompt_tokens_only(loop: HandLoop) -> None:
    """What was generated is read again, too, but it is no prompt."""
    message = run_message(1, LONG, generated=(FIRST_WORD,) * 50, max_tokens=60)
    loop.post(message)
    loop.finish()
    most = max(progress.prompt_processed for step in loop.steps for progress in step.progress)
    assert most == len(message.prompt)
    assert len(loop.tokens(1)) == 10


# Failures.


def test_a_failing_device_ends_the_step_s_runs_with_an_error_and_frees_them(loop: HandLoop) -> None:
    """All that were in the step; those that come later work."""
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
    """Its earlier output was reported."""
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
def test_a_failure_says_what_the_device_did(loop: HandLoop, device: str, outcome: Outcome, code: str) -> None:
    """A GPU that failed, one without memory left, or the CPU's own way of failing."""
    loop.model.facts = msgspec.structs.replace(loop.model.facts, device=device)
    loop.post(run_message(1))
    loop.model.next_outcome = outcome
    loop.turn()
    assert loop.ends(1) == [code]
    assert loop.cells_held() == [0, 0, 0, 0]


def test_warming_up_leaves_nothing_behind_and_teaches_what_steps_cost(loop: HandLoop) -> None:
    """The first job's first step is planned by what the machine can do, not by a guess."""
    loop.model.prefill_row_ms = 2.0
    loop.warm_up()
    assert loop.cells_held() == [0, 0, 0, 0]
    assert loop.sent == []
    loop.post(run_message(1, LONG * 2))
    loop.turn()
    assert loop.steps[0].duration_ms == pytest.approx(500, rel=0.1)
    assert loop.model.steps[-1].rows_of(0) == pytest.approx(250, rel=0.1)


def test_when_cells_run_out_the_youngest_is_preempted_and_continues_later(make_loop: MakeLoop) -> None:
    """Nobody fails, the oldest is never preempted, and reported tokens stand."""
    room = 3 * (len(run_message(1).prompt) + GROWTH_CELLS)
    cramped = make_loop(cells=room)
    cramped.post(*(run_message(run, max_tokens=100) for run in (3, 1, 2)))
    while not cramped.turn_idle():
        assert sum(cramped.cells_held()) <= room
    assert next(step.preempted for step in cramped.steps if step.preempted) == (3,)
    assert 1 not in {run for step in cramped.steps for run in step.preempted}
    for run in (1, 2, 3):
        assert cramped.tokens(run) == alone(make_loop, run, max_tokens=100)
        preempted = [step.preempted for step in cramped.steps].count((run,))
        assert [said.run for said in cramped.sent if isinstance(said, Started)].count(run) == 1 + preempted
    assert cramped.cells_held() == [0, 0, 0, 0]


def test_when_cells_run_out_the_least_urgent_is_preempted(make_loop: MakeLoop) -> None:
    """Not the youngest."""
    cramped = make_loop(cells=3 * (len(run_message(1).prompt) + GROWTH_CELLS))
    cramped.post(*(run_message(run, max_tokens=100, order=-float(run)) for run in (1, 2, 3)))
    while not (preempted := cramped.steps[-1].preempted if cramped.steps else ()):
        cramped.turn()
    assert preempted == (1,)


def test_a_run_that_was_preempted_can_be_stopped_while_it_waits(make_loop: MakeLoop) -> None:
    """At once; it holds nothing, and does not come back."""
    single = make_loop(parallel=1)
    single.post(run_message(1, max_tokens=50, priority=1))
    in_decode(single, 1)
    single.post(run_message(2, max_tokens=50, order=-1.0))
    single.turn()
    single.post(Stop(1))
    single.turn()
    assert [(said.run, said.cells_before, said.cells_after) for said in single.stopped] == [(1, 0, 0)]
    said = len(single.tokens(1))
    single.finish()
    assert (len(single.tokens(1)), single.ends(1), single.ends(2)) == (said, [], ["length"])


@pytest.mark.parametrize("generated", [0, 3], ids=["prefill", "decode"])
def test_a_run_without_a_place_takes_that_of_a_less_urgent_one(make_loop: MakeLoop, generated: int) -> None:
    """After one step; the preempted run continues from what it computed, and says the same as alone."""
    prompt = QUICK + "x" * 600
    single = make_loop(parallel=1)
    single.post(run_message(1, prompt, max_tokens=9, priority=1, cache=""))
    single.turn()
    while len(single.tokens(1)) < generated:
        single.turn()
    before = single.model.cells_in_use()
    single.post(run_message(2, "urgent", order=-1.0, cache=""))
    single.turn()
    assert single.steps[-1].preempted == (1,)
    assert single.model.cells_in_use() > before, "what it computed stays warm"
    single.finish()
    assert single.ends(2) == ["length"]
    assert single.tokens(1) == alone(make_loop, 1, prompt, max_tokens=9)
    computed = sum(step.prompt_computed for step in single.steps)
    assert computed <= len(prompt) + 1 + len(run_message(2, "urgent").prompt)


def test_an_urgent_prompt_is_computed_before_the_rest_of_a_less_urgent_one(loop: HandLoop) -> None:
    """There is a place for both; runs that decode go on in every step."""
    prompt = QUICK + "x" * 600
    loop.post(run_message(3, max_tokens=99))
    in_decode(loop, 3)
    loop.post(run_message(1, prompt, max_tokens=5, priority=1))
    loop.turn()
    said = len(loop.steps)
    loop.post(run_message(2, prompt, max_tokens=5, order=-1.0))
    in_decode(loop, 2)
    steps = loop.steps[said:]
    assert len(steps) > 2
    assert {progress.run for step in steps for progress in step.progress} == {2}
    assert all(3 in [out.run for out in step.tokens] for step in steps)
    loop.finish()
    assert (loop.ends(1), loop.ends(2)) == (["length"], ["length"])


@pytest.mark.parametrize(
    "other",
    [{"priority": 1, "order": 1.0}, {"priority": 0, "order": 1.0}, {"priority": 2, "order": -1.0}],
)
def test_a_run_without_a_place_waits_for_one_that_is_as_urgent(
    make_loop: MakeLoop, other: dict[str, Any]
) -> None:
    """Also for one with a higher priority that has waited so long that it comes first."""
    single = make_loop(parallel=1)
    single.post(run_message(1, max_tokens=3, **other))
    single.turn()
    single.post(run_message(2, priority=1))
    single.finish()
    assert [step.preempted for step in single.steps if step.preempted] == []
    ends = [end.run for step in single.steps for end in step.ended]
    assert ends == [1, 2]


def test_a_model_that_finds_no_room_has_the_youngest_preempted(loop: HandLoop) -> None:
    """By its own count there was some; the others do the step again."""
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.model.next_outcome = Outcome.NO_ROOM
    loop.turn()
    assert (loop.steps[-1].preempted, loop.steps[-1].ended) == ((2,), ())
    loop.finish()
    assert loop.ends(1) == ["length"]


def test_a_model_that_has_less_room_than_it_says_serves_one_run_after_the_other(loop: HandLoop) -> None:
    """The run that was preempted waits until another one is over, and does not take the room again in the next turn."""
    room_for_one = loop.model.decode

    def decode(batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        loop.model.next_outcome = Outcome.NO_ROOM if len(set(batch.sequences)) > 1 else None
        return room_for_one(batch, abort_mode=abort_mode)

    loop.model.decode = decode  # type: ignore[method-assign]
    loop.post(run_message(1, max_tokens=9), run_message(2, max_tokens=9))
    loop.finish(most=100)
    assert (loop.ends(1), loop.ends(2)) == (["length"], ["length"])
    assert sum(isinstance(said, Started) for said in loop.sent) == 3


def test_a_run_alone_that_finds_no_room_fails(loop: HandLoop) -> None:
    """There is no run to preempt; the engine continues."""
    loop.post(run_message(1, max_tokens=9))
    in_decode(loop, 1)
    loop.model.next_outcome = Outcome.NO_ROOM
    loop.turn()
    assert [(end.run, end.error_code) for end in loop.steps[-1].ended] == [(1, "INTERNAL")]


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
    """A step that failed or found no room has not been done."""
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


# The audit.


def test_cells_that_nobody_holds_are_reported_and_freed(loop: HandLoop) -> None:
    """An idle engine finds them when it is asked whether it is there."""
    loop.model.trim(2, 0)
    loop.model.decode(Batch([1, 2, 3], [0, 1, 2], [2, 2, 2], [False] * 3), abort_mode=AbortMode.NONE)
    loop.post(Ping())
    assert loop.turn_idle()
    assert loop.faults == [AuditFault(None, "sequence 2 held 3 KV cells instead of 0", repaired=True)]
    assert loop.cells_held() == [0, 0, 0, 0]


@pytest.mark.parametrize("cells", [2, 400])
def test_a_run_whose_cells_are_not_what_they_should_be_continues_with_right_ones(
    make_loop: MakeLoop, cells: int
) -> None:
    """Too many are trimmed; with too few all are computed anew: its tokens are those of the run alone."""
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
    """It is reported once; jobs get the other ids."""
    loop.post(run_message(1, says("a", leak=4)))
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
    """And loses nothing."""
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
    """Its successor starts clean, and continues what it held."""
    loop = make_loop(parallel=1, exact=True)
    loop.post(run_message(1, says("a", leak=1000)))
    loop.finish()
    loop.post(run_message(2))
    with pytest.raises(NoUsableSequence):
        loop.turn()


def test_a_run_that_the_front_does_not_know_is_freed_and_reported(loop: HandLoop) -> None:
    """Nothing is computed for nobody; the others go on."""
    loop.post(run_message(1, max_tokens=30), run_message(2, max_tokens=9))
    in_decode(loop, 1, 2)
    loop.post(Ping(runs=(2,)))
    loop.turn()
    assert loop.faults == [AuditFault(1, "run 1 is unknown to the front", repaired=True)]
    assert loop.model.cells(0) == 0
    loop.finish()
    assert (loop.ends(1), loop.ends(2)) == ([], ["length"])
    assert loop.model.samplers_open == 0


# Sequence ids.


def test_the_lowest_free_id_is_taken_first(loop: HandLoop) -> None:
    """Streams want their ids small and close together."""
    loop.post(*(run_message(n, max_tokens=30) for n in (1, 2, 3)))
    in_decode(loop, 1, 2, 3)
    loop.post(Stop(2))
    loop.turn()
    loop.post(run_message(4, max_tokens=30))
    loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, True, True, False]


def test_dense_ids_close_their_holes_and_nobody_s_tokens_change(make_loop: MakeLoop) -> None:
    """When one in the middle ends, the last one takes its id, cells and all."""
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


def test_dense_ids_close_several_holes_of_one_step(make_loop: MakeLoop) -> None:
    """Three of four end by themselves in the same step."""
    loop = make_loop(exact=True)
    loop.post(*(run_message(n, "q", max_tokens=30 if n == 4 else 3) for n in (1, 2, 3, 4)))
    while not (loop.ends(1) and loop.ends(2) and loop.ends(3)):
        loop.turn()
    assert [cells > 0 for cells in loop.cells_held()] == [True, False, False, False]
    loop.finish()
    assert loop.tokens(4) == alone(make_loop, 4, "q", max_tokens=30)


def test_where_a_move_fails_the_hole_stays_and_no_token_changes(make_loop: MakeLoop) -> None:
    """Steps are slower then, and still right."""
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
