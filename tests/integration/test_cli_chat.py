"""`worker-orcd chat`: a conversation at a terminal, and piped."""

import json
import signal
from typing import Any

import pytest

from tests.helpers import at_rest
from tests.terminal import CTRL_C, CTRL_D, Piped, Terminal, run
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

ENDLESS = '{"token_ms": 5}'
"""A message whose answer takes about ten seconds."""


def says(text: str) -> str:
    """A prompt that the scripted engine answers with this text."""
    return json.dumps({"text": text})


def tokens_of(*messages: str) -> int:
    """Tokens of a conversation for the scripted engine: one for each byte, and one between messages."""
    return len("\n".join(messages).encode())


def answers(stdout: str) -> list[dict[str, Any]]:
    """The objects that `--json` has written."""
    return [json.loads(line) for line in stdout.splitlines()]


def latest(worker: RunningWorker) -> dict[str, Any]:
    """The record of the only live job, or else of the job that ended last, or else an empty one."""
    records = worker.client.get("/jobs?limit=1").json()["jobs"]
    return dict(records[0]) if records else {}


# Piped.


def test_one_line_in_one_answer_out(worker: RunningWorker) -> None:
    """Nothing else is written; empty lines are ignored."""
    result = run("chat", worker=worker, stdin=f"{says('Hello')}\n\n{says('Grüße 👋')}\n")
    assert (result.stdout, result.stderr, result.returncode) == ("Hello\nGrüße 👋\n", "", 0)


def test_each_line_is_answered_before_the_next_is_there(worker: RunningWorker) -> None:
    """So a program can hold the conversation."""
    chat = Piped(worker, "chat")
    for word in ("one", "two"):
        chat.say(says(word))
        assert chat.first_output(4) == f"{word}\n".encode()
    assert chat.end() == (0, "", "")


def test_the_conversation_is_sent_along(worker: RunningWorker) -> None:
    """Each request has the system message, earlier questions and answers, and the options."""
    lines = [says("A"), says("B"), "/reset", says("C")]
    options = ("--system", "Be brief.", "--max-tokens", "9", "--seed", "7", "--temperature", "0.5")
    result = run("chat", "--json", *options, worker=worker, stdin="\n".join(lines))
    reported = answers(result.stdout)
    assert [one["content"] for one in reported] == ["A", "B", "C"]
    records = [worker.record(one["job_id"]) for one in reported]
    assert [record["prompt_tokens"] for record in records] == [
        tokens_of("Be brief.", says("A")),
        tokens_of("Be brief.", says("A"), "A", says("B")),
        tokens_of("Be brief.", says("C")),
    ]
    assert {(record["seed"], record["max_tokens"]) for record in records} == {(7, 9)}


def test_an_answer_as_json(worker: RunningWorker) -> None:
    """Text and outcome of an answer are on one line, even if the text has several lines."""
    result = run("chat", "--json", worker=worker, stdin=says("a\nb"))
    (reported,) = answers(result.stdout)
    assert reported.pop("job_id").startswith("cli-")
    assert reported == {
        "content": "a\nb",
        "stop_reason": "stop",
        "tokens_out": 3,
        "error": None,
        "receipt": None,
    }


def test_exit_is_the_end_of_the_conversation(worker: RunningWorker) -> None:
    """Later lines are not read."""
    assert run("chat", worker=worker, stdin=f"{says('A')}\n/exit\n{says('B')}\n").stdout == "A\n"


def test_an_answer_that_fails_ends_a_piped_conversation(worker: RunningWorker) -> None:
    """One line has the error code, and the exit code is 1; with `--json` the answer has the error as well."""
    lines = f'{says("A")}\n{{"fail_at": 1}}\n{says("B")}\n'
    failed = run("chat", worker=worker, stdin=lines)
    assert (failed.returncode, failed.stdout.split("\n")[0]) == (1, "A")
    assert failed.stderr.startswith("worker-orcd: INTERNAL: ")
    reported = answers(run("chat", "--json", worker=worker, stdin=lines).stdout)
    assert [one["error"] and one["error"]["code"] for one in reported] == [None, "INTERNAL"]
    refused = run("chat", "--temperature", "3", worker=worker, stdin="hello")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("worker-orcd: INVALID_REQUEST: ")
    assert "temperature" in refused.stderr


def test_an_answer_cancelled_from_elsewhere_ends_a_piped_conversation(worker: RunningWorker) -> None:
    """Its receipt is shown, and the exit code is 1."""
    chat = Piped(worker, "chat")
    chat.say(ENDLESS)
    chat.first_output()
    (live,) = worker.client.get("/jobs?limit=0").json()["jobs"]
    worker.cancel(live["job_id"])
    code, _, said = chat.end()
    assert code == 1
    assert said.startswith(
        "worker-orcd: CANCELLED: the answer was cancelled by another client (reason client): "
    )
    assert "KV cells" in said


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_pipe_stops_the_answer_and_leaves(worker: RunningWorker, as_json: bool) -> None:
    """The receipt is shown; the exit code is 130."""
    chat = Piped(worker, "chat", *(["--json"] if as_json else []))
    chat.say(ENDLESS)
    wait_until(lambda: worker.health()["kv_cells_used"] > len(ENDLESS) + 3, what="some tokens")
    chat.process.send_signal(signal.SIGINT)
    code, shown, said = chat.end()
    assert code == 130
    assert said.startswith("stopped after ")
    assert latest(worker)["receipt"]["reason"] == "client"
    if as_json:
        (reported,) = answers(shown)
        assert reported["error"]["code"] == "CANCELLED"
        assert reported["receipt"]["kv_cells_after"] == 0
        assert reported["content"].startswith("w")


# At a terminal.


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(worker: RunningWorker) -> None:
    """The partial answer stays part of it. At the prompt Ctrl-C leaves, and the terminal is restored."""
    with Terminal(worker, "chat", "--temperature", "0") as chat:
        chat.shows("scripted at http.*Ctrl-C stops an answer")
        chat.shows("> ")
        chat.type(f"{ENDLESS}\n")
        chat.shows("w3 ")
        chat.type(CTRL_C)
        chat.shows(r"stopped after [\d.]+ ms, freed after [\d.]+ ms, terminal event after .*tokens out\)")
        stopped = latest(worker)
        assert (stopped["state"], stopped["receipt"]["reason"]) == ("cancelled", "client")
        chat.shows("> ")
        chat.type(f"{says('And then?')}\n")
        chat.shows("And then[?]\r\n")
        so_far = "".join(f"w{place} " for place in range(stopped["tokens_out"]))
        wait_until(lambda: latest(worker)["state"] == "completed", what="the second answer")
        assert latest(worker)["prompt_tokens"] == tokens_of(ENDLESS, so_far, says("And then?"))
        chat.shows("> ")
        chat.type(CTRL_C)
        assert chat.ended() == 130
        assert chat.attributes() == chat.before


def test_a_line_that_is_typed_while_an_answer_streams_supersedes_it(worker: RunningWorker) -> None:
    """The partial answer is sent along; the receipt is shown; commands wait for the end of an answer."""
    with Terminal(worker, "chat", "--max-tokens", "1000", "--temperature", "0") as chat:
        chat.shows("> ")
        chat.type(f"{ENDLESS}\n")
        chat.shows("w3|[0-9] ")
        old, question = latest(worker), f"{ENDLESS}And then?"
        chat.type(f"{question}\n")
        chat.shows("superseded: stopped after")
        chat.shows("w3|[0-9] ")
        new, old = latest(worker), worker.record(old["job_id"])
        assert (old["receipt"]["reason"], old["superseded_by"]) == ("superseded", new["job_id"])
        assert new["prompt_tokens_cached"] >= old["prompt_tokens"]
        said = ["".join(f"w{n} " for n in range(tokens)) for tokens in range(1, old["tokens_out"] + 1)]
        assert new["prompt_tokens"] in [tokens_of(ENDLESS, text, question) for text in said]
        chat.type("/exit\n")
        worker.cancel(new["job_id"])  # Ctrl-C would also drop what is typed and not read yet.
        chat.shows("the answer was cancelled by another client")
        assert chat.ended() == 0
        assert chat.attributes() == chat.before


@pytest.mark.parametrize("leaving", [CTRL_D, "/exit\n"], ids=["Ctrl-D", "exit"])
def test_leaving_a_conversation(worker: RunningWorker, leaving: str) -> None:
    """The end of the input or an exit word ends it with exit code 0."""
    with Terminal(worker, "chat") as chat:
        chat.shows("> ")
        chat.type("/help\n")
        chat.shows("/reset starts a new conversation.")
        chat.shows("> ")
        chat.type(leaving)
        assert chat.ended() == 0
        assert chat.attributes() == chat.before


def test_second_ctrl_c_leaves_at_once() -> None:
    """Also while the worker does not answer the first one's cancel."""
    with running_worker(cancel_deadline_sec=30, drain_sec=0) as stuck, Terminal(stuck, "chat") as chat:
        chat.shows("> ")
        chat.type('{"hang_at": 3}\n')
        wait_until(lambda: latest(stuck).get("tokens_out") == 3, what="three tokens")
        chat.type(CTRL_C)
        wait_until(lambda: latest(stuck).get("state") == "stopping", what="the first one")
        chat.type(CTRL_C)
        assert chat.ended() == 130
        assert chat.attributes() == chat.before


def test_what_goes_wrong_does_not_end_a_conversation_at_a_terminal(worker: RunningWorker) -> None:
    """A failure, a refusal or a cancel by another client is one line, and the conversation continues."""
    with Terminal(worker, "chat", "--max-tokens", "1000") as chat:
        chat.shows("> ")
        chat.type('{"fail_at": 1}\n')
        chat.shows("worker-orcd: INTERNAL: .*correlation id")
        chat.shows("> ")
        chat.type(f"{ENDLESS}\n")
        chat.shows("w3|[0-9] ")
        (live,) = worker.client.get("/jobs?limit=0").json()["jobs"]
        worker.cancel(live["job_id"])
        chat.shows("worker-orcd: CANCELLED: the answer was cancelled by another client")
        chat.shows("> ")
        chat.type(f"{says('still here')}\n")
        chat.shows('"still here"')
        chat.shows("still here")
        chat.shows("> ")
        chat.type("/exit\n")
        assert chat.ended() == 0
    at_rest(worker)


def test_a_worker_that_comes_back_continues_with_the_conversation() -> None:
    """The client holds the conversation; only the answer that was being generated is lost."""
    with running_worker() as first, Terminal(first, "chat") as chat:
        chat.shows("> ")
        chat.type(f"{says('one')}\n")
        chat.shows("one\r\n")
        chat.shows("> ")
        assert first.stop() == 0
        chat.type(f"{says('two')}\n")
        chat.shows("worker-orcd: UNREACHABLE: no worker at .*is it running")
        chat.shows("> ")
        with running_worker(port=first.port) as second:
            chat.type(f"{says('three')}\n")
            wait_until(lambda: latest(second).get("state") == "completed", what="an answer")
            assert latest(second)["prompt_tokens"] == tokens_of(says("one"), "one", says("three"))
            chat.shows("> ")
            chat.type(CTRL_D)
            assert chat.ended() == 0
