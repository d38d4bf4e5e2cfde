"""Log events: a closed catalogue; each event is one safe line and never disturbs the worker (M0-W-1900)."""

import dataclasses
import io
import json
import os
import re
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tools.docs.log_events import log_events_section
from worker_orcd import narration
from worker_orcd.narration import catalogue, context, text
from worker_orcd.narration.narrator import ENVELOPE
from worker_orcd.narration.sink import LINE_LIMIT
from worker_orcd.narration.testing import capture

WORKER_ID = "7f0e0b0e-5c1c-4b7e-9d2e-0d7c8f8f4a11"

CONTRACT_ACTIONS = [
    "startup",
    "model_load_start",
    "model_load_progress",
    "model_load_complete",
    "ready",
    "route",
    "execute_start",
    "execute_end",
    "cancel",
    "cancel_complete",
    "timeout",
    "disconnect",
    "error",
    "engine_lost",
    "engine_restarted",
    "worker_lost",
    "drain",
    "shutdown",
]

ANY_TEXT = st.text(st.characters(), max_size=256)
NASTY = '\x00\n\r\t\x1b[31m\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800"\\|é漢😀 '
HOSTILE = st.text(st.sampled_from(NASTY) | st.characters(), max_size=256)


def a_job_is_cancelled(**changes: Any) -> narration.CancelComplete:
    """Make a receipt as it is when all goes well."""
    reported: dict[str, Any] = {
        "job_id": "job-7",
        "reason": "client",
        "phase": "decode",
        "stopped_ms": 4.1234,
        "freed_ms": 4.5,
        "terminal_ms": 5.0,
        "tokens_out": 12,
        "cells_before": 40,
        "cells_after": 0,
    }
    return narration.CancelComplete(**(reported | changes))


def filled(action: type[catalogue.Action], words: str) -> catalogue.Action:
    """Make an event of `action` whose every text field is `words`."""
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(action).items():
        if name not in catalogue.FIELDS[action]:
            continue
        kind = next(k for k in (typing.get_args(hint) or (hint,)) if k is not type(None))
        by_kind = {str: words, int: 2**64 - 1, float: 123456.789, bool: True}
        values[name] = by_kind[kind] if isinstance(kind, type) else kind
    return action(**values)


def reported_line(action: catalogue.Action, log_format: narration.LogFormat = "json") -> str:
    """Emit an action to a new stream and return all that was written."""
    stream = io.StringIO(newline="")
    narration.Narrator.configure(WORKER_ID, log_format=log_format, stream=stream).emit(action)
    return stream.getvalue()


class TestCatalogue:
    """The actions and their sentences."""

    def test_it_holds_exactly_the_actions_of_the_contract(self) -> None:
        """Neither one more nor one less than contract section 9 lists."""
        assert [action.name for action in narration.ACTIONS] == CONTRACT_ACTIONS

    @pytest.mark.parametrize("action", narration.ACTIONS, ids=lambda action: action.name)
    def test_every_action_is_complete_and_consistent(self, action: type[catalogue.Action]) -> None:
        """Sentences name fields of the action once each, fields are documented and hide no envelope field."""
        hints = typing.get_type_hints(action, include_extras=True)
        for sentence in action.sentences.values():
            names = re.findall(r"{(\w+)}", sentence.template)
            assert set(names) <= set(catalogue.FIELDS[action])
            assert len(names) == len(set(names))
            assert len(re.sub(r"{\w+}", "", sentence.template)) < 70
        for name in catalogue.FIELDS[action]:
            assert hints[name].__metadata__[0]
            assert name == "job_id" or name not in ENVELOPE

    @pytest.mark.parametrize(
        ("action", "level", "human"),
        [
            (narration.Cancel(job_id="j", known="live", reason="client"), "INFO", "Cancelling job j"),
            (
                narration.Cancel(job_id="j", known="unknown", reason="client"),
                "WARN",
                "Cancel requested for unknown job j",
            ),
            (
                narration.Cancel(job_id="j", known="finished", reason="client"),
                "WARN",
                "Cancel requested for finished job j",
            ),
            (
                narration.Cancel(group="g", known="unknown", reason="client"),
                "WARN",
                "Cancel requested for group g without live jobs",
            ),
            (a_job_is_cancelled(job_id="j"), "INFO", "Job j cancelled successfully"),
            (
                a_job_is_cancelled(job_id="j", freed_ms=None),
                "WARN",
                "Job j ends as CANCELLED; its memory is not confirmed free",
            ),
            (a_job_is_cancelled(job_id="j", reason="timeout"), "INFO", "Job j is stopped at its time limit"),
            (
                narration.Error(code="INVALID_REQUEST", message="no job_id", http_status=400),
                "WARN",
                "Refusing a request with INVALID_REQUEST: no job_id",
            ),
            (
                narration.Error(code="DRAINING", message="shutting down", http_status=503),
                "WARN",
                "Refusing a request with DRAINING: shutting down",
            ),
            (
                narration.Error(code="INVALID_REQUEST", message="too long", job_id="j"),
                "WARN",
                "Refusing job j with INVALID_REQUEST: too long",
            ),
            (
                narration.Error(code="CUDA_ERROR", message="device gone", job_id="j"),
                "ERROR",
                "Job j fails with CUDA_ERROR: device gone",
            ),
            (
                narration.Error(code="MODEL_LOAD_FAILED", message="no such file"),
                "ERROR",
                "Worker reports MODEL_LOAD_FAILED: no such file",
            ),
            (
                narration.Disconnect(job_id="j", phase="decode", on_disconnect="continue"),
                "INFO",
                "Last reader of job j leaves: the job continues",
            ),
        ],
    )
    def test_the_variant_gives_level_and_sentence(
        self, action: catalogue.Action, level: str, human: str
    ) -> None:
        """The words of the contract, at its levels."""
        event = json.loads(reported_line(action))
        assert (event["level"], event["human"]) == (level, human)

    def test_an_action_that_is_not_in_it_cannot_be_logged(self) -> None:
        """Neither another class nor a subclass of an action is accepted, and nothing is written."""

        class Invented(narration.Ready):
            """Looks like an action."""

        stream = io.StringIO()
        narrator = narration.Narrator.configure(WORKER_ID, log_format="json", stream=stream)
        for stranger in (object(), Invented(host="h", port=1, startup_ms=1.0), narration.Ready):
            with pytest.raises(TypeError, match="not an action of the narration catalogue"):
                narrator.emit(stranger)  # type: ignore[arg-type]
        assert stream.getvalue() == ""

    def test_a_field_that_is_not_in_it_cannot_be_given(self) -> None:
        """Fields are the class's, required and frozen."""
        with pytest.raises(TypeError):
            narration.ModelLoadStart(path="m", prompt="secret")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            narration.ModelLoadStart()  # type: ignore[call-arg]
        with pytest.raises(dataclasses.FrozenInstanceError):
            narration.ModelLoadStart(path="m").path = "other"  # type: ignore[misc]

    def test_the_reference_documents_every_action_sentence_and_field(self) -> None:
        """The Markdown is rendered from the classes, its rows have as many cells as their head."""
        rendered = log_events_section()
        for action in narration.ACTIONS:
            assert f"### `{action.name}`" in rendered
            for sentence in action.sentences.values():
                assert f"| {sentence.level} |" in rendered
                assert sentence.template in rendered
            for name in catalogue.FIELDS[action]:
                assert f"| `{name}` |" in rendered


class TestEvent:
    """What every event carries."""

    def test_it_carries_the_envelope_first_and_then_its_own_fields(self) -> None:
        """The order is the same for all events, times have milliseconds and say UTC."""
        event = json.loads(reported_line(narration.Cancel(job_id="job-7", known="live", reason="client")))
        assert list(event)[:10] == [name for name in ENVELOPE if name not in ("correlation_id", "lines_lost")]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
        assert event == {
            "level": "INFO",
            "actor": "worker-orcd",
            "action": "cancel",
            "target": "job:job-7",
            "human": "Cancelling job job-7",
            "worker_id": WORKER_ID,
            "pid": os.getpid(),
            "process": "front",
            "job_id": "job-7",
            "known": "live",
            "reason": "client",
            "repeated": False,
        }

    def test_what_is_not_confirmed_is_null_and_what_is_not_there_is_left_out(self) -> None:
        """A receipt says `freed_ms: null`; an optional field without a value does not appear."""
        event = json.loads(reported_line(a_job_is_cancelled(freed_ms=None)))
        assert event["freed_ms"] is None
        assert "cancel_correlation_id" not in event
        assert event["stopped_ms"] == 4.123

    def test_numbers_that_json_does_not_know_become_null(self) -> None:
        """Infinity and not-a-number never make a line that is not JSON."""
        event = json.loads(
            reported_line(a_job_is_cancelled(stopped_ms=float("nan"), terminal_ms=float("inf")))
        )
        assert (event["stopped_ms"], event["terminal_ms"]) == (None, None)

    def test_the_correlation_id_is_the_given_one_else_that_of_the_request(self) -> None:
        """A given id takes precedence."""
        action = narration.ModelLoadStart(path="m")
        with capture() as events:
            narrator = narration.Narrator.configure(WORKER_ID, process="engine", stream=io.StringIO())
            token = context.correlation_id.set("of-request")
            try:
                narrator.emit(action, correlation_id="given")
                narrator.emit(action)
            finally:
                context.correlation_id.reset(token)
            narrator.emit(action)
        assert [event.get("correlation_id") for event in events] == ["given", "of-request", None]
        assert {event["process"] for event in events} == {"engine"}

    def test_an_exception_is_reported_without_its_message(self) -> None:
        """Where it was raised and what caused it is there; what it quotes may be a prompt and is not."""
        prompt = "secret"

        def fail() -> None:
            try:
                int(prompt)
            except ValueError as error:
                raise KeyError(prompt) from error

        with pytest.raises(KeyError) as raised:
            fail()
        reported = narration.Error.from_exception(
            raised.value, code="INTERNAL", message="Our fault", http_status=500
        )
        assert reported.traceback is not None
        assert "secret" not in reported.traceback
        event = json.loads(reported_line(reported))
        assert event["exception_type"] == "builtins.KeyError"
        assert event["level"] == "ERROR"
        assert event["traceback"].index("ValueError") < event["traceback"].rindex("KeyError")
        assert "test_narration.py" in event["traceback"]

    def test_a_prompt_is_reported_by_length_and_digest(self) -> None:
        """Characters, not bytes; any text has a digest, a lone surrogate included."""
        assert narration.prompt_digest("naïve")[0] == 5
        assert narration.prompt_digest("") == (
            0,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        )
        assert re.fullmatch("[0-9a-f]{64}", narration.prompt_digest("\ud800")[1])


class TestLine:
    """One event is one line, whatever clients put into it."""

    @settings(max_examples=150, deadline=None)
    @given(action=st.sampled_from(narration.ACTIONS), words=ANY_TEXT | HOSTILE)
    def test_any_text_makes_one_json_line_with_a_short_sentence_and_whole_fields(
        self, action: type[catalogue.Action], words: str
    ) -> None:
        """Valid JSON in plain ASCII; the sentence is printable and fits; fields come back as they were."""
        reported = filled(action, words)
        written = reported_line(reported)
        assert written.endswith("\n")
        assert len(written.splitlines()) == 1
        assert written[:-1].isascii()
        assert written[:-1].isprintable()
        event = json.loads(written)
        assert len(event["human"]) <= 100
        assert event["human"].isprintable()
        if "job_id" in event:
            assert event["job_id"] == words
            assert event["target"] == f"job:{words}"
        if "group" in event:
            assert event["group"] == words

    @settings(max_examples=150, deadline=None)
    @given(action=st.sampled_from(narration.ACTIONS), words=ANY_TEXT | HOSTILE)
    def test_any_text_makes_one_pretty_line_without_raw_control_characters(
        self, action: type[catalogue.Action], words: str
    ) -> None:
        """Only a traceback goes on, on lines that a bar marks as its own."""
        first, *more = reported_line(filled(action, words), "pretty")[:-1].split("\n")
        assert first.isprintable()
        assert all(line.isprintable() and line.startswith("    | ") for line in more)
        assert not more or action is narration.Error

    @settings(max_examples=100, deadline=None)
    @given(
        template=st.sampled_from([s.template for a in narration.ACTIONS for s in a.sentences.values()]),
        words=st.text(st.characters(), max_size=5000),
    )
    def test_any_length_of_text_fits_the_sentence(self, template: str, words: str) -> None:
        """Long values are shortened, down to one character each."""
        values = dict.fromkeys(re.findall(r"{(\w+)}", template), words)
        assert len(text.fill(template, values)) <= text.SENTENCE_LIMIT

    def test_a_long_id_shows_both_its_ends_and_is_whole_in_its_field(self) -> None:
        """Ids that only differ at one end stay apart in the sentence."""
        job_id = "first-" + "x" * 240 + "-last"
        event = json.loads(reported_line(narration.Cancel(job_id=job_id, known="live", reason="client")))
        assert event["human"].startswith("Cancelling job first-x")
        assert event["human"].endswith("x-last")
        assert len(event["human"]) == 100
        assert event["job_id"] == job_id

    def test_a_long_message_gives_way_before_a_short_id(self) -> None:
        """A short value is never shortened in favour of a long one."""
        reported = narration.Error(code="CUDA_ERROR", message="device " * 50, job_id="job-7")
        human = json.loads(reported_line(reported))["human"]
        assert human.startswith("Job job-7 fails with CUDA_ERROR: device device")
        assert human.endswith("…")
        assert len(human) == 100

    def test_a_line_fits_what_a_pipe_takes_whole(self) -> None:
        """Two processes write to one pipe; ids stay whole, prose and traceback give way."""
        job_id = "j" * 256
        reported = narration.Error(
            code="INTERNAL", message="\n" * 9000, job_id=job_id, exception_type="E", traceback="é\n" * 9000
        )
        for log_format in typing.get_args(narration.LogFormat):
            assert len(reported_line(reported, log_format).encode()) <= LINE_LIMIT
        assert json.loads(reported_line(reported))["job_id"] == job_id

    def test_a_terminal_gets_columns_with_colours_and_a_pipe_gets_json(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`auto` decides by the stream; NO_COLOR is heeded."""

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        action = narration.Cancel(job_id="job-7", known="unknown", reason="client")
        monkeypatch.delenv("NO_COLOR", raising=False)
        coloured, plain = Terminal(), Terminal()
        narration.Narrator.configure(WORKER_ID, stream=coloured).emit(action)
        monkeypatch.setenv("NO_COLOR", "1")
        narration.Narrator.configure(WORKER_ID, stream=plain).emit(action)
        assert "\x1b[" in coloured.getvalue()
        assert "\x1b" not in plain.getvalue()
        assert re.sub(r"\x1b\[\d+m", "", coloured.getvalue()).split()[1:] == plain.getvalue().split()[1:]
        assert " Cancel requested for unknown job job-7 " in plain.getvalue()
        assert json.loads(reported_line(action, "auto"))["action"] == "cancel"


class Unwilling(io.StringIO):
    """A stream that takes nothing."""

    def write(self, line: str) -> int:
        """Fail as a pipe without a reader does."""
        raise BrokenPipeError


class TestFailure:
    """Logging never disturbs the work."""

    def test_a_stream_that_fails_is_counted_not_raised(self) -> None:
        """Broken and closed streams alike."""
        closed = io.StringIO()
        closed.close()
        for stream in (Unwilling(), closed):
            narrator = narration.Narrator.configure(WORKER_ID, stream=stream)
            narrator.emit(narration.ModelLoadStart(path="m"))
            narrator.emit(narration.ModelLoadStart(path="m"))
            assert narrator.lines_lost == 2

    def test_a_value_that_cannot_be_rendered_is_counted_and_later_lines_say_so(self) -> None:
        """Nor does a wrong value raise; the loss is reported as soon as a line gets through."""

        class Broken:
            def __repr__(self) -> str:
                raise RuntimeError

        stream = io.StringIO()
        narrator = narration.Narrator.configure(WORKER_ID, log_format="json", stream=stream)
        narrator.emit(narration.ModelLoadStart(path=Broken()))  # type: ignore[arg-type]
        narrator.emit(narration.ModelLoadStart(path="m"))
        assert json.loads(stream.getvalue())["lines_lost"] == narrator.lines_lost == 1

    def test_a_stream_with_a_small_alphabet_gets_escapes(self) -> None:
        """An ASCII terminal shows what it can, and the line is not lost."""
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        narrator = narration.Narrator.configure(WORKER_ID, log_format="pretty", stream=stream)
        narrator.emit(narration.ModelLoadStart(path="modèle"))
        stream.seek(0)
        assert "Loading model mod\\xe8le" in stream.read()
        assert narrator.lines_lost == 0

    def test_a_stalled_reader_costs_lines_not_time_and_a_returning_one_gets_them_again(self) -> None:
        """While a pipe is full and nobody reads it, emitting hundreds of events does not wait; the lost ones are
        counted, and lines are written again once there is room."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
            narrator = narration.Narrator.configure(WORKER_ID, stream=stream)
            for _ in range(600):
                narrator.emit(a_job_is_cancelled())
            lost = narrator.lines_lost
            assert lost > 0
            whole = b""
            while whole.count(b"\n") < 600 - lost:
                whole += os.read(reader.fileno(), 1 << 20)
            assert [json.loads(line)["action"] for line in whole.splitlines()] == ["cancel_complete"] * (
                600 - lost
            )
            narrator.flush(1.0)
            narrator.emit(narration.ModelLoadStart(path="m"))
            assert json.loads(os.read(reader.fileno(), 1 << 20))["lines_lost"] == lost

    def test_a_slow_reader_gets_every_line_in_order_and_is_not_waited_for(self) -> None:
        """The lines are more than a pipe holds and fewer than may be queued."""
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
            narrator = narration.Narrator.configure(WORKER_ID, stream=stream)
            slowest = 0.0
            for number in range(300):
                began = time.monotonic()
                narrator.emit(narration.ModelLoadStart(path=str(number)))
                slowest = max(slowest, time.monotonic() - began)
            got = b""
            while got.count(b"\n") < 300:
                got += os.read(reader.fileno(), 4096)
            assert [json.loads(line)["path"] for line in got.splitlines()] == [str(n) for n in range(300)]
            assert (narrator.lines_lost, slowest < 0.5) == (0, True)

    def test_each_line_is_one_system_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that lines of two processes never mix."""
        written: list[bytes] = []
        real: Callable[[int, bytes], int] = os.write

        def write(fd: int, data: bytes) -> int:
            written.append(data)
            return real(fd, data)

        with Path(os.devnull).open("w") as stream:
            narrator = narration.Narrator.configure(WORKER_ID, log_format="json", stream=stream)
            monkeypatch.setattr(os, "write", write)
            narrator.emit(a_job_is_cancelled())
            narrator.emit(a_job_is_cancelled())
            monkeypatch.undo()
        assert [line.count(b"\n") for line in written] == [1, 1]


class TestCapture:
    """Tests can capture log events."""

    def test_it_gives_the_events_and_writes_nothing(self) -> None:
        """Events are plain dicts; afterwards lines are written again."""
        stream = io.StringIO()
        narrator = narration.Narrator.configure(WORKER_ID, log_format="json", stream=stream)
        with capture() as events:
            narrator.emit(narration.ModelLoadStart(path="m"))
        assert [(event["action"], event["path"]) for event in events] == [("model_load_start", "m")]
        assert stream.getvalue() == ""
        narrator.emit(narration.ModelLoadStart(path="m"))
        assert len(events) == 1
        assert stream.getvalue().count("\n") == 1

    def test_captures_nest(self) -> None:
        """An inner capture with equal events ends without ending the outer one."""
        narrator = narration.Narrator.configure(WORKER_ID, stream=io.StringIO())
        with capture() as outer:
            with capture() as inner:
                narrator.emit(narration.ModelLoadStart(path="m"))
            narrator.emit(narration.ModelLoadStart(path="m"))
        assert (len(outer), len(inner)) == (2, 1)


class TestCorrelationId:
    """The client's id is used if it is valid; otherwise a new one is made."""

    @pytest.mark.parametrize("offered", ["a", "~" * 128, "!#:/@", "7f0e-1"])
    def test_visible_ascii_up_to_128_characters_is_taken_over(self, offered: str) -> None:
        """The client's id is kept to the letter."""
        assert context.accept_correlation_id(offered) == offered

    @pytest.mark.parametrize("offered", [None, "", "a" * 129, "a b", "a\n", "a\x7f", "é", "\x1b[31m"])
    def test_anything_else_is_replaced(self, offered: str | None) -> None:
        """A new id is 32 hex digits, and never the same twice."""
        made = {context.accept_correlation_id(offered) for _ in range(2)}
        assert len(made) == 2
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
