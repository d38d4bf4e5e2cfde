"""One job: its events, its single terminal event, its receipt."""

import pytest

from tests.fakes import at, freed_at, queued_job, running_job, stop_request
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Started, Token
from worker_orcd.jobs.job import Job, Phase
from worker_orcd.jobs.lifecycle import State
from worker_orcd.jobs.receipt import Release
from worker_orcd.jobs.record import record_of
from worker_orcd.jobs.stop_request import StopReason


def decoding_job() -> Job:
    """A job that generated two tokens, at seconds 2 and 3."""
    job = running_job()
    job.prompt_processed = 3
    job.token(at(2), 11, "Hello")
    job.token(at(3), 12, " world")
    return job


def error_of(job: Job) -> dict[str, object]:
    """The data of the job's `error` event, which is its last."""
    assert isinstance(job.terminal, Error)
    assert job.events[-1] is job.terminal
    return job.terminal.data()


def receipt_of(job: Job) -> dict[str, object]:
    """The job's receipt."""
    assert job.receipt is not None
    return job.receipt.data()


# Events.


def test_a_job_s_events_are_started_tokens_end() -> None:
    """In this order, numbered by their place, with the data of the contract (2)."""
    job = decoding_job()
    job.finished(at(4), "length", freed_at(4))
    assert [event.name for event in job.events] == ["started", "token", "token", "end"]
    assert [event.data() for event in job.events] == [
        {"job_id": "job-1", "model": "a-model", "started_at": "2023-11-14T22:13:21.000Z", "seed": 7},
        {"t": "Hello", "i": 0},
        {"t": " world", "i": 1},
        {"tokens_out": 2, "decode_time_ms": 1000, "stop_reason": "length"},
    ]


def test_a_job_that_never_started_sends_only_its_error() -> None:
    """A job that was never handed to the engine has no `started` event."""
    job = queued_job()
    job.request_stop(stop_request())
    assert [event.name for event in job.events] == ["error"]


def test_text_held_to_the_end_is_a_token_event_that_counts_for_none() -> None:
    """`i` has no gap, and `tokens_out` counts the model's tokens only."""
    job = decoding_job()
    assert job.token(at(4), None, "…")
    job.finished(at(4), "stop", freed_at(4))
    assert job.events[-2] == Token("…", 2)
    assert job.events[-1] == End(tokens_out=2, decode_time_ms=2000, stop_reason="stop")
    assert job.tokens == [11, 12]


def test_a_token_may_bring_no_text() -> None:
    """The event is sent although its character is not complete yet."""
    job = running_job()
    assert job.token(at(2), 11, "")
    assert job.events[-1] == Token("", 0)


def test_a_job_that_ends_without_a_token_took_no_time_to_decode() -> None:
    """The first token may be the end of generation."""
    job = running_job()
    job.finished(at(4), "stop", freed_at(4))
    assert job.events[-1] == End(0, 0, "stop")


@pytest.mark.parametrize("reason", ["stop", "length", "stop_sequence"])
def test_a_natural_end_says_why(reason: str) -> None:
    """`stop_reason` is one of three."""
    job = decoding_job()
    job.finished(at(4), reason, freed_at(4))  # type: ignore[arg-type]  # One of the literals, from a list.
    assert isinstance(job.terminal, End)
    assert job.terminal.stop_reason == reason
    assert record_of(job)["stop_reason"] == reason
    assert record_of(job)["state"] == "completed"
    assert job.receipt is None


# Phases.


def test_phases_follow_what_the_job_does() -> None:
    """`queued` in the front, `prefill` until the first token, then `decode`."""
    job = queued_job()
    job.phase = Phase.QUEUED
    job.measured((1, 2, 3), 8)
    phases = [job.phase]
    job.handed_over()
    job.started(at(1), "a-model")
    phases.append(job.phase)
    job.token(at(2), 5, "")
    phases.append(job.phase)
    assert phases == ["queued", "prefill", "decode"]


def test_the_phase_is_frozen_at_the_stop() -> None:
    """A token that arrives after the stop does not change `prefill` to `decode`."""
    job = running_job()
    job.request_stop(stop_request())
    assert not job.token(at(2.1), 5, "late")
    job.stopped(at(2.2), freed_at(2.2))
    assert error_of(job)["phase"] == "prefill"
    assert error_of(job)["tokens_out"] == 0


@pytest.mark.parametrize(("phase", "said"), [(Phase.LOADING, "loading"), (Phase.QUEUED, "queued")])
def test_a_waiting_job_that_is_stopped_says_what_it_waited_for(phase: Phase, said: str) -> None:
    """Its phase is `loading` or `queued`."""
    job = queued_job()
    job.phase = phase
    job.request_stop(stop_request())
    assert error_of(job)["phase"] == said
    assert receipt_of(job)["phase"] == said


# Stopping.


def test_a_cancelled_job_s_error_is_exactly_that_of_the_contract() -> None:
    """Every key, in every value (contract, 3)."""
    job = decoding_job()
    job.request_stop(stop_request())
    job.stopped(at(3.1), freed_at(3.1))
    assert error_of(job) == {
        "code": "CANCELLED",
        "message": "Job cancelled by client request",
        "retriable": False,
        "reason": "client",
        "phase": "decode",
        "prompt_tokens": 3,
        "tokens_out": 2,
    }


def test_asked_to_stop_is_not_stopped() -> None:
    """A running job has no terminal event before the engine's confirmation (G4)."""
    job = decoding_job()
    assert job.request_stop(stop_request())
    assert job.state is State.STOPPING
    assert job.live
    assert job.terminal is None
    assert job.receipt is None


def test_a_queued_job_ends_with_the_stop_request_itself() -> None:
    """It holds nothing in the engine."""
    job = queued_job()
    assert job.request_stop(stop_request())
    assert not job.live
    assert job.ended_at == 2.0
    assert receipt_of(job) == {
        "reason": "client",
        "phase": "loading",
        "accepted_ms": 0.0,
        "stopped_ms": 0.0,
        "freed_ms": 0.0,
        "terminal_ms": 0.0,
        "prompt_tokens": 0,
        "prompt_tokens_cached": 0,
        "tokens_out": 0,
        "kv_cells_before": 0,
        "kv_cells_after": 0,
        "kv_cells_warm": 0,
        "cancel_correlation_id": "cor-cancel",
    }


def test_the_first_reason_wins() -> None:
    """A lost reader, then a client, a deadline and a shutdown: it was the reader."""
    job = decoding_job()
    assert job.request_stop(stop_request(StopReason.DISCONNECT, 3.0, "first"))
    for later in (StopReason.CLIENT, StopReason.TIMEOUT, StopReason.SHUTDOWN):
        assert not job.request_stop(stop_request(later, 4.0, "later"))
    job.stopped(at(5), freed_at(5))
    assert error_of(job)["reason"] == "disconnect"
    assert receipt_of(job)["reason"] == "disconnect"
    assert receipt_of(job)["cancel_correlation_id"] == "first"
    assert receipt_of(job)["terminal_ms"] == 2000.0


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (StopReason.CLIENT, "Job cancelled by client request"),
        (StopReason.DISCONNECT, "Job cancelled because its last reader left"),
        (StopReason.SHUTDOWN, "Job cancelled because the worker shuts down"),
        (StopReason.SUPERSEDED, "Job cancelled because a newer job superseded it"),
    ],
)
def test_every_reason_but_the_deadline_ends_in_cancelled(reason: StopReason, message: str) -> None:
    """The code is the same; reason and message differ."""
    job = decoding_job()
    job.request_stop(stop_request(reason))
    job.stopped(at(4), freed_at(4))
    assert (error_of(job)["code"], error_of(job)["reason"]) == ("CANCELLED", reason.value)
    assert error_of(job)["message"] == message
    assert record_of(job)["state"] == "cancelled"


def test_a_deadline_ends_in_inference_timeout() -> None:
    """The same mechanism ends in another, retriable code."""
    job = decoding_job()
    job.request_stop(stop_request(StopReason.TIMEOUT))
    job.stopped(at(4), freed_at(4))
    assert error_of(job) == {
        "code": "INFERENCE_TIMEOUT",
        "message": "Job took longer than 300000 ms",
        "retriable": True,
        "phase": "decode",
        "prompt_tokens": 3,
        "tokens_out": 2,
    }
    assert record_of(job)["state"] == "timed_out"


def test_a_natural_end_after_a_stop_is_cancelled_all_the_same() -> None:
    """The cancel was accepted first; the natural end that followed does not change the outcome."""
    job = decoding_job()
    job.request_stop(stop_request(seconds=3))
    job.finished(at(3.5), "length", freed_at(3.4))
    assert error_of(job)["code"] == "CANCELLED"
    assert (receipt_of(job)["freed_ms"], receipt_of(job)["terminal_ms"]) == (400.0, 500.0)
    assert [event.name for event in job.events] == ["started", "token", "token", "error"]


@pytest.mark.parametrize("code", [ErrorCode.INTERNAL, ErrorCode.CUDA_ERROR, ErrorCode.ENGINE_LOST])
def test_only_the_message_of_an_internal_error_has_the_correlation_id(code: ErrorCode) -> None:
    """It leads to the log events."""
    job = decoding_job()
    job.failed(at(4), JobError(code, "it broke"), freed_at(4))
    internal = code is ErrorCode.INTERNAL
    assert error_of(job)["message"] == ("it broke, correlation id cor-1" if internal else "it broke")


def test_a_failure_after_a_stop_is_cancelled_all_the_same() -> None:
    """The first stop request decides the outcome."""
    job = decoding_job()
    job.request_stop(stop_request())
    job.failed(at(4), JobError(ErrorCode.CUDA_ERROR, "it broke"), freed_at(4))
    assert error_of(job)["code"] == "CANCELLED"


def test_what_arrives_after_a_stop_is_not_reported() -> None:
    """Readers get no token after a stop request, though the engine finishes its step."""
    job = decoding_job()
    events = list(job.events)
    job.request_stop(stop_request())
    assert not job.token(at(4), 13, "!")
    assert job.events == events
    assert job.tokens == [11, 12]


def test_a_receipt_counts_from_the_acceptance_of_the_stop_that_counted() -> None:
    """It has milliseconds to stopped, freed and terminal, and the cells by the engine's own count."""
    job = decoding_job()
    job.request_stop(stop_request(seconds=3.0))
    freed = Release(3.004, 3.0065, cells_before=5, cells_after=0, prompt_processed=3, cells_warm=5)
    job.stopped(at(3.02), freed)
    assert receipt_of(job) == {
        "reason": "client",
        "phase": "decode",
        "accepted_ms": 0.0,
        "stopped_ms": 4.0,
        "freed_ms": 6.5,
        "terminal_ms": 20.0,
        "prompt_tokens": 3,
        "prompt_tokens_cached": 0,
        "tokens_out": 2,
        "kv_cells_before": 5,
        "kv_cells_after": 0,
        "kv_cells_warm": 5,
        "cancel_correlation_id": "cor-cancel",
    }
    assert record_of(job)["receipt"] == receipt_of(job)


def test_no_time_of_a_receipt_is_negative() -> None:
    """The engine may have freed a job that ended by itself just before the cancel was accepted."""
    job = decoding_job()
    job.request_stop(stop_request(seconds=3.0))
    job.finished(at(3.0), "stop", freed_at(2.99))
    assert (receipt_of(job)["stopped_ms"], receipt_of(job)["freed_ms"]) == (0.0, 0.0)


def test_the_engine_s_count_of_prompt_tokens_is_taken_over_at_the_end() -> None:
    """Tokens of an aborted step may be reported only in the confirmation."""
    job = running_job()
    job.prompt_processed = 1
    job.request_stop(stop_request())
    job.stopped(at(3), Release(3, 3, prompt_processed=2))
    assert error_of(job)["prompt_tokens"] == 2


# Engines and devices.


def test_a_failure_has_its_code_and_what_was_used() -> None:
    """The error has the device's code, the phase and the token counts."""
    job = decoding_job()
    job.failed(at(4), JobError(ErrorCode.CUDA_ERROR, "GPU 0 failed"), freed_at(4))
    assert error_of(job) == {
        "code": "CUDA_ERROR",
        "message": "GPU 0 failed",
        "retriable": True,
        "phase": "decode",
        "prompt_tokens": 3,
        "tokens_out": 2,
    }
    assert record_of(job)["state"] == "failed"
    assert job.receipt is None


def test_a_prompt_that_is_refused_in_the_stream_names_the_field() -> None:
    """As a 400 would, for a job that was accepted while the model was loading."""
    job = queued_job()
    refused = JobError(ErrorCode.INVALID_REQUEST, "top_k is 60000", param="top_k")
    job.failed(at(4), refused, freed_at(4))
    assert [event.name for event in job.events] == ["error"]
    assert (error_of(job)["code"], error_of(job)["param"]) == ("INVALID_REQUEST", "top_k")


def test_a_running_job_whose_engine_dies_waits_for_the_next() -> None:
    """Readers get no event, and nothing it had is lost (G7)."""
    job = decoding_job()
    events = list(job.events)
    job.engine_lost(at(4))
    assert (job.state, job.events, job.tokens, job.requeues) == (State.QUEUED, events, [11, 12], 1)
    job.handed_over()
    job.started(at(5), "a-model")
    job.token(at(6), 13, "c")
    assert job.events[:-1] == events, "it is not started twice for its readers"
    assert job.events[-1].data() == {"t": "c", "i": 2}


def test_a_job_that_was_asked_to_stop_before_the_engine_died_is_cancelled() -> None:
    """The death confirms the stop: nothing is computed or held any more."""
    job = decoding_job()
    job.request_stop(stop_request(seconds=3))
    job.engine_lost(at(5))
    assert error_of(job)["code"] == "CANCELLED"
    assert (receipt_of(job)["freed_ms"], receipt_of(job)["kv_cells_after"]) == (2000.0, 0)
    assert receipt_of(job)["kv_cells_before"] == 4, (
        "three of the prompt and the first token; the second had no cell yet"
    )


def test_a_queued_job_outlives_the_engine() -> None:
    """It was never handed over, so it loses nothing."""
    job = queued_job()
    job.engine_lost(at(4))
    assert job.state is State.QUEUED
    assert job.events == []


def test_an_unconfirmed_stop_says_so_in_its_receipt() -> None:
    """`freed_ms` is null, since the release was not confirmed."""
    job = decoding_job()
    job.request_stop(stop_request(seconds=3))
    job.give_up(at(8))
    assert error_of(job)["code"] == "CANCELLED"
    assert receipt_of(job)["freed_ms"] is None
    assert receipt_of(job)["kv_cells_after"] is None
    assert receipt_of(job)["terminal_ms"] == 5000.0


def test_a_job_that_was_preempted_holds_no_cells() -> None:
    """Also by the receipt, if the engine dies with its stop on the way."""
    job = decoding_job()
    job.in_cells(3, 0)
    assert job.cells_held == 4
    job.preempted()
    job.phase = Phase.QUEUED
    job.request_stop(stop_request())
    job.engine_lost(at(9))
    assert job.receipt is not None
    assert (job.receipt.kv_cells_before, job.receipt.prompt_tokens) == (0, 3)


# What can be looked up.


def test_what_is_needed_to_requeue_a_job_is_in_its_record() -> None:
    """Prompt tokens, tokens so far, limits and seed (design.md)."""
    job = decoding_job()
    assert (job.prompt_tokens, job.tokens, job.max_tokens, job.seed) == ((1, 2, 3), [11, 12], 8, 7)
    assert isinstance(job.events[0], Started)
    assert job.events[0].seed == job.seed


def test_a_record_counts_milliseconds_from_acceptance() -> None:
    """Queueing, first token, end, and the time in between."""
    job = decoding_job()
    job.finished(at(4.5), "stop", freed_at(4.5))
    record = record_of(job)
    assert (record["queue_ms"], record["first_token_ms"], record["ended_ms"]) == (1000.0, 2000.0, 4500.0)
    assert (record["decode_time_ms"], record["prompt_tokens"], record["max_tokens"]) == (1000.0, 3, 8)
    assert (record["accepted_at"], record["correlation_id"]) == ("2023-11-14T22:13:20.000Z", "cor-1")


def test_the_record_of_a_queued_job_has_no_times_yet() -> None:
    """Unknown times are null, not zero."""
    record = record_of(queued_job())
    unknown = ["queue_ms", "first_token_ms", "ended_ms", "prompt_tokens", "max_tokens", "error", "receipt"]
    assert {name: record[name] for name in unknown} == dict.fromkeys(unknown)
    assert record["state"] == "queued"


def test_the_deadline_counts_from_acceptance() -> None:
    """Queue time included."""
    job = queued_job(timeout_sec=12.0)
    job.measured((1,), 1)
    job.handed_over()
    job.started(at(9), "a-model")
    assert job.deadline == 12.0


# Text that is held back.


@pytest.mark.parametrize("how", ["cancelled", "timed out", "failed", "engine lost", "given up", "requeued"])
def test_text_that_is_held_back_goes_out_before_the_end_however_the_job_ends(how: str) -> None:
    """It is one more token event; text that arrives after the stop is dropped."""
    job = running_job()
    job.token(at(2), 10, "a", "<|")
    job.token(at(2), 11, "b", "<|e")
    match how:
        case "failed":
            job.failed(at(3), JobError(ErrorCode.CUDA_ERROR, "GPU 0 failed"), freed_at(3))
        case "requeued":
            job.engine_lost(at(3))
            job.request_stop(stop_request())
        case _:
            job.request_stop(stop_request(StopReason.TIMEOUT if how == "timed out" else StopReason.CLIENT))
            job.token(at(3), 12, "late", "later")
            if how == "engine lost":
                job.engine_lost(at(4))
            elif how == "given up":
                job.give_up(at(7))
            else:
                job.stopped(at(3), freed_at(3))
    tokens = [event for event in job.events if isinstance(event, Token)]
    assert [(event.t, event.i) for event in tokens] == [("a", 0), ("b", 1), ("<|e", 2)]
    assert job.terminal is not None
    assert job.tokens_out == 2


def test_text_that_came_out_at_the_natural_end_does_not_come_twice() -> None:
    """At a natural end the engine itself sends the held-back text."""
    job = running_job()
    job.token(at(2), 10, "a", "<|")
    job.token(at(2), None, "<|")
    job.finished(at(3), "length", freed_at(3))
    assert [event.t for event in job.events if isinstance(event, Token)] == ["a", "<|"]


# The progress of its prompt.


def test_a_job_that_asks_for_it_reports_how_much_of_its_prompt_is_computed() -> None:
    """The first report at once, further ones a quarter of a second after the latest one, none behind a token."""
    job = running_job(progress=True)
    for sec, processed, is_reported in ((0.1, 1, True), (0.2, 2, False), (0.35, 3, True)):
        job.in_cells(processed, 1)
        assert job.report_progress(at(1 + sec)) == is_reported
    job.token(at(2), 5, "Hi")
    assert not job.report_progress(at(9))
    assert [event.name for event in job.events] == ["started", "progress", "progress", "token"]
    assert [event.data() for event in job.events[1:3]] == [
        {"prompt_tokens": 3, "processed": 1, "cached": 1},
        {"prompt_tokens": 3, "processed": 3, "cached": 1},
    ]


def test_no_progress_is_reported_unasked_or_of_a_job_that_is_being_stopped() -> None:
    """The events of a job that is being stopped end with the error alone."""
    unasked, stopping = running_job(), running_job(progress=True)
    stopping.request_stop(stop_request())
    for job in (unasked, stopping):
        assert not job.report_progress(at(3))
        assert [event.name for event in job.events] == ["started"]
