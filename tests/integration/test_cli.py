"""The command line as users run it: real processes, their output, and their exit codes."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers import queued
from tests.terminal import CTRL_C, PATIENCE_SEC, Piped, Terminal, environment, run
from worker_orcd import __version__, settings
from worker_orcd.cli import demo
from worker_orcd.settings import bundled_model
from worker_orcd.testing.harness import RunningWorker, free_port, running_worker, wait_until

ENDLESS = '{"token_ms": 5}'
"""A prompt whose job runs for about ten seconds."""


@pytest.fixture
def worker(narrow: RunningWorker) -> RunningWorker:
    """A shared worker that runs one job at a time."""
    return narrow


class Executing(Piped):
    """A running `worker-orcd execute`."""

    def __init__(self, worker: RunningWorker, job_id: str, *words: str) -> None:
        super().__init__(worker, "execute", "--job-id", job_id, *words)
        self._worker = worker
        self.job_id = job_id

    def state(self, *wanted: str) -> str:
        """Wait until the worker reports one of these states for the job."""

        def look() -> str | None:
            state = self._worker.record(self.job_id).get("state")
            return state if state in wanted else None

        return wait_until(look, within_sec=PATIENCE_SEC, what=f"{self.job_id} to be {wanted}")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


def assert_one_line(result: "subprocess.CompletedProcess[str]", code: str, *parts: str) -> None:
    """A failure is one line on stderr that begins with its code, and exit code 1."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"worker-orcd: {code}: ")
    for part in parts:
        assert part in lines[0]
    assert result.stdout == ""
    assert result.returncode == 1


# The command itself.


def test_version() -> None:
    """`--version` says the version."""
    result = run("--version")
    assert (result.stdout, result.returncode) == (f"worker-orcd {__version__}\n", 0)


def test_help_shows_commands_and_the_options_of_serve_with_their_variables() -> None:
    """`--help` shows every command, and every option of the default command with its environment variable."""
    shown = run("--help").stdout
    for command in ("serve", "execute", "chat", "cancel", "ps", "logs", "demo", "completion"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)
    assert "--port N" in shown
    assert "WORKER_ORCD_PORT" in shown
    assert "WORKER_ORCD_INFERENCE_TIMEOUT_SEC" in shown


def test_help_lists_every_option_with_its_variable_and_its_true_default() -> None:
    """Those of the contract's first section that there are, as `Settings` has them."""
    shown = " ".join(run("serve", "--help").stdout.split())
    for option in settings.options():
        (about,) = re.findall(rf" {option.flag}[ /].*?\(([^()]*?){option.variable}\)", shown)
        reported = {"none", "generated", "cores", "bundled model", "file's name"}
        assert about == ("" if option.default in reported else f"{option.default}; ")
    of_the_contract = {
        *(
            "--model",
            "--host",
            "--port",
            "--gpu-device",
            "--worker-id",
            "--model-alias",
            "--parallel",
            "--exact",
        ),
        *(
            "--context-length",
            "--max-queue",
            "--max-tokens-out",
            "--max-prompt-chars",
            "--inference-timeout-sec",
        ),
        *("--keep-alive-sec", "--cancel-deadline-sec", "--cancel-memory-sec", "--drain-sec", "--threads"),
        *("--log-format", "--api-key-file", "--insecure"),
    }
    assert of_the_contract <= {option.flag for option in settings.options()}


def test_client_commands_import_no_server() -> None:
    """`worker-orcd cancel` does not import what only `serve` needs."""
    script = (
        "import sys; from worker_orcd.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'fastapi', 'uvicorn', 'pydantic_settings', 'llama_cpp', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "cancel", "job-1", "--url", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE_SEC,
        check=False,
    )
    assert result.stdout == "[]\n"


# execute


def test_execute_streams_the_text_and_exits_0(worker: RunningWorker) -> None:
    """The output is the text of the job, and nothing else."""
    result = run("execute", '{"text": "Grüße 👋"}', worker=worker)
    assert (result.stdout, result.stderr, result.returncode) == ("Grüße 👋\n", "", 0)


def test_execute_hands_its_options_on(worker: RunningWorker) -> None:
    """Options of the command line reach the worker, and the job has the given id."""
    options = ("--job-id", "cli-options", "--max-tokens", "3", "--seed", "7", "--temperature", "0.5")
    more = ("--top-p", "0.9", "--top-k", "5", "--template", "none", "--ignore-eos", "--timeout-ms", "9000")
    others = ("--group", "cli-g", "--repetition-penalty", "1.5")
    result = run("execute", "hello", *options, *more, "--stop", "zz", "--stop", "yy", *others, worker=worker)
    assert (len(result.stdout.split()), result.returncode) == (3, 0)
    record = worker.record("cli-options")
    assert (record["state"], record["tokens_out"], record["seed"]) == ("completed", 3, 7)
    assert (record["timeout_ms"], record["group"]) == (9000, "cli-g")


def test_execute_reads_the_prompt_from_standard_input(worker: RunningWorker) -> None:
    """`-` stands for standard input."""
    assert run("execute", "-", worker=worker, stdin='{"text": "from stdin"}').stdout == "from stdin\n"


def test_execute_makes_up_a_job_id(worker: RunningWorker) -> None:
    """Without `--job-id` the job is called `cli-` and 8 hex digits."""
    result = run("execute", "hello", "--max-tokens", "1", "--json", worker=worker)
    started = json.loads(result.stdout.splitlines()[0])
    assert re.fullmatch(r"cli-[0-9a-f]{8}", started["data"]["job_id"])


def test_execute_shows_events_as_json_lines(worker: RunningWorker) -> None:
    """`--json` prints one event a line, with its number, name and data."""
    result = run("execute", '{"text": "ab"}', "--json", worker=worker)
    events: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["started", "token", "token", "end"]
    assert [event["id"].rpartition(".")[2] for event in events] == ["0", "1", "2", "3"]
    assert events[1]["data"] == {"t": "a", "i": 0}
    assert result.returncode == 0


def test_execute_that_is_refused_is_one_line_with_the_correlation_id(worker: RunningWorker) -> None:
    """The line has the code, the message, and the correlation id of the worker's log event."""
    result = run("execute", "hello", "--temperature", "3", worker=worker)
    assert_one_line(result, "INVALID_REQUEST", "temperature", "correlation id")
    found = re.search(r"correlation id ([0-9a-f]{32})", result.stderr)
    assert found is not None
    worker.narrated("error", correlation_id=found[1])


def test_execute_that_fails_is_one_line(worker: RunningWorker) -> None:
    """The line has the job's error code; the exit code is 1."""
    result = run("execute", '{"fail_at": 1}', worker=worker)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("worker-orcd: INTERNAL: ")


def test_ctrl_c_cancels_the_job_and_shows_the_receipt(worker: RunningWorker) -> None:
    """Ctrl-C cancels over HTTP, waits for CANCELLED, shows the receipt and exits 130."""
    executing = Executing(worker, "cli-ctrl-c", ENDLESS)
    executing.first_output()
    executing.interrupt()
    code, _, said = executing.end()
    assert code == 130
    assert re.search(r"job cli-ctrl-c cancelled: stopped after [\d.]+ ms, freed after [\d.]+ ms", said), said
    assert re.search(
        r"terminal event after [\d.]+ ms; KV cells \d+ → 0, \d+ kept for later jobs \(decode, ", said
    ), said
    record = worker.record("cli-ctrl-c")
    assert (record["state"], record["receipt"]["reason"]) == ("cancelled", "client")


def test_ctrl_c_shows_the_cancelled_event_as_json(worker: RunningWorker) -> None:
    """With `--json` the stream is read to its very end, the CANCELLED event included."""
    executing = Executing(worker, "cli-ctrl-c-json", ENDLESS, "--json")
    begun = executing.first_output()
    executing.interrupt()
    output, _ = executing.process.communicate()
    last = json.loads((begun + output).splitlines()[-1])
    assert (last["event"], last["data"]["code"]) == ("error", "CANCELLED")
    assert executing.process.returncode == 130


def test_ctrl_c_cancels_a_job_that_waits_in_the_queue(worker: RunningWorker) -> None:
    """Ctrl-C works the same for a job that has not started."""
    running = worker.execute("cli-in-front", ENDLESS).started()
    executing = Executing(worker, "cli-queued", "hello")
    executing.state("queued")
    executing.interrupt()
    code, _, said = executing.end()
    worker.cancel("cli-in-front")
    running.finished()
    assert code == 130
    assert "(queued, 0 prompt tokens processed, 0 tokens out)" in said


def test_ctrl_c_is_a_key_of_the_terminal(worker: RunningWorker) -> None:
    """In a real terminal: the receipt is shown there, and the terminal is restored."""
    with Terminal(worker, "execute", "--job-id", "cli-key", "--temperature", "0", ENDLESS) as terminal:
        terminal.shows("job cli-key; to cancel it: Ctrl-C")
        terminal.shows("w3 ")
        terminal.type(CTRL_C)
        terminal.shows(
            r"job cli-key cancelled: stopped after [\d.]+ ms, freed after [\d.]+ ms, terminal event after"
        )
        assert terminal.ended() == 130
        assert terminal.attributes() == terminal.before


def test_a_terminal_does_not_obey_what_a_model_says(worker: RunningWorker) -> None:
    """Escape sequences are shown in printable form; piped, the text is unchanged."""
    evil = json.dumps({"text": "a\x1b]0;title\x07b\nc"})
    assert run("execute", evil, worker=worker).stdout == "a\x1b]0;title\x07b\nc\n"
    with Terminal(worker, "execute", "--max-tokens", "40", evil) as terminal:
        terminal.shows("a\ufffd]0;title\ufffdb")
        assert terminal.ended() == 0
        assert "\x1b" not in terminal.raw()


def test_second_ctrl_c_leaves_at_once() -> None:
    """The second Ctrl-C does not wait for a stuck engine."""
    with running_worker(cancel_deadline_sec=30, drain_sec=0) as stuck:
        executing = Executing(stuck, "cli-stuck", '{"hang_at": 3}')
        wait_until(lambda: stuck.record("cli-stuck").get("tokens_out") == 3, within_sec=PATIENCE_SEC)
        executing.interrupt()
        executing.state("stopping")
        executing.interrupt()
        code, _, said = executing.end()
        assert (code, said) == (130, "")


def test_execute_cancelled_from_elsewhere_says_so(worker: RunningWorker) -> None:
    """A cancel by another client is reported with its receipt, and the command fails."""
    executing = Executing(worker, "cli-elsewhere", ENDLESS)
    executing.first_output()
    assert worker.cancel("cli-elsewhere").status_code == 202
    code, _, said = executing.end()
    assert code == 1
    assert said.startswith(
        "job cli-elsewhere was cancelled by another client (reason client): stopped after "
    )


def test_execute_into_a_closed_pipe_stops_the_job(worker: RunningWorker) -> None:
    """When the pipe's reader has left (`| head`), the job is stopped, and a line says why."""
    executing = Executing(worker, "cli-pipe", ENDLESS)
    executing.first_output()
    assert executing.process.stdout is not None
    executing.process.stdout.close()
    executing.process.stdout = None
    code, _, said = executing.end()
    assert (code, said) == (
        1,
        "worker-orcd: OUTPUT_LOST: cannot write to standard output: Broken pipe\n",
    )
    executing.state("cancelled")
    assert worker.record("cli-pipe")["receipt"]["reason"] == "client"


def test_execute_says_when_the_worker_dies() -> None:
    """A stream that breaks off is reported in one line."""
    with running_worker() as doomed:
        executing = Executing(doomed, "cli-doomed", ENDLESS)
        executing.first_output()
        doomed.process.kill()
        code, _, said = executing.end()
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith("worker-orcd: UNREACHABLE: ")


# cancel


def test_cancel_shows_the_answer_and_the_receipt(worker: RunningWorker) -> None:
    """The receipt says how long it took until the job was stopped and freed."""
    stream = worker.execute("cli-cancel", ENDLESS).tokens_seen(3)
    result = run("cancel", "cli-cancel", worker=worker)
    stream.finished()
    (receipt,) = result.stdout.splitlines()
    assert receipt.startswith("job cli-cancel cancelled (reason client): stopped after ")
    assert result.returncode == 0
    assert stream.terminal is not None
    assert stream.terminal.data["code"] == "CANCELLED"


@pytest.mark.parametrize("columns", [40, 80])
def test_on_a_narrow_terminal_a_receipt_breaks_at_words(worker: RunningWorker, columns: int) -> None:
    """No word and no number is broken; piped it is one line."""
    stream = worker.execute(f"cli-narrow-{columns}", ENDLESS).tokens_seen(1)
    with Terminal(worker, "cancel", stream.job_id, columns=columns) as terminal:
        terminal.shows(r"tokens\s+out\)")
        assert terminal.ended() == 0
    stream.finished()
    lines = terminal.plain().splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(terminal.plain().split()) == run("cancel", stream.job_id, worker=worker).stdout.rstrip()


def test_cancel_twice_is_as_good_as_once(worker: RunningWorker) -> None:
    """A second cancel is answered like the first, and shows the first one's receipt."""
    worker.execute("cli-twice", ENDLESS).tokens_seen(1)
    first = run("cancel", "cli-twice", worker=worker)
    second = run("cancel", "cli-twice", worker=worker)
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout


def test_cancel_of_a_job_that_ended_or_never_was(worker: RunningWorker) -> None:
    """Both exit with 0 and one line that says which it was."""
    worker.execute("cli-ended", '{"text": "a"}').finished()
    ended = run("cancel", "cli-ended", worker=worker)
    assert (ended.returncode, ended.stdout) == (0, "job cli-ended had already ended: completed\n")
    unknown = run("cancel", "cli-unknown", worker=worker)
    assert (unknown.returncode, unknown.stderr) == (0, "")
    assert unknown.stdout == "job cli-unknown is unknown; nothing to stop\n"


def test_cancel_of_an_id_that_looks_like_a_path(worker: RunningWorker) -> None:
    """`..` is a valid job id."""
    worker.execute("..", '{"text": "a"}').finished()
    assert "job .. had already ended: completed" in run("cancel", "..", worker=worker).stdout


def test_cancel_as_json(worker: RunningWorker) -> None:
    """`--json` gives status, answer and record, for scripts."""
    worker.execute("cli-json", ENDLESS).tokens_seen(1)
    shown = json.loads(run("cancel", "cli-json", "--json", worker=worker).stdout)
    assert shown["status"] == 202
    assert shown["answer"] == {"status": "cancelling", "job_id": "cli-json"}
    assert shown["record"]["receipt"]["kv_cells_after"] == 0


def test_cancel_of_a_group(worker: RunningWorker) -> None:
    """Each live job of the group has a line; a group without live jobs is reported as such."""
    worker.execute("cli-group-1", ENDLESS, group="cli-group").tokens_seen(1)
    queued(worker, worker.execute("cli-group-2", ENDLESS, group="cli-group"))
    shown = run("cancel", "--group", "cli-group", worker=worker)
    lines = sorted(shown.stdout.splitlines())
    assert [line.split(": ")[0] for line in lines] == [
        "job cli-group-1 cancelled (reason client)",
        "job cli-group-2 cancelled (reason client)",
    ]
    again = run("cancel", "--group", "cli-group", worker=worker)
    assert (again.stdout, again.returncode) == ("group cli-group has no live jobs; nothing to stop\n", 0)
    reported = json.loads(run("cancel", "--group", "cli-group", "--json", worker=worker).stdout)
    assert reported == {"status": 202, "answer": {"status": "cancelling", "group": "cli-group"}}


@pytest.mark.parametrize("words", [(), ("job-1", "--group", "g")], ids=["nothing", "both"])
def test_cancel_wants_one_thing_to_cancel(words: tuple[str, ...]) -> None:
    """A job or a group; anything else is a usage error, exit code 2."""
    result = run("cancel", *words)
    assert result.returncode == 2
    assert "either JOB_ID or --group" in result.stderr


def test_cancel_of_a_malformed_id_is_one_line(worker: RunningWorker) -> None:
    """The worker's 400 is shown with its code."""
    assert_one_line(run("cancel", "a b", worker=worker), "INVALID_REQUEST", "job_id", "correlation id")


# demo


def test_a_check_of_the_demo_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Each check is one line, kept or not, and nothing else is written; broken promises are listed in `failed`."""
    checks = demo.Checks(Console(quiet=True), as_json=True)
    checks.check(True, "it stops")
    checks.cells_are_free(10, 3)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        {"kept": True, "what": "it stops"},
        {"kept": False, "what": "KV cells in /health: 10 before, 3 after"},
    ]
    assert checks.failed == ["KV cells in /health: 10 before, 3 after"]


# A worker that is not there.


@pytest.mark.parametrize(
    "words",
    [
        ("execute", "hello"),
        ("chat",),
        ("cancel", "job-1"),
        ("cancel", "--group", "g"),
        ("ps",),
        ("ps", "--json"),
        ("logs",),
    ],
    ids=" ".join,
)
def test_a_worker_that_cannot_be_reached_is_one_clear_line(words: tuple[str, ...]) -> None:
    """Every client command says which address it tried, and what to do."""
    url = f"http://127.0.0.1:{free_port()}"
    assert_one_line(run(*words, "--url", url), "UNREACHABLE", url, "worker-orcd serve")


@pytest.mark.parametrize("url", ["localhost:8080", "http://[::1", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_one_clear_line(url: str) -> None:
    """An invalid `--url` is shown as it was given."""
    assert_one_line(run("ps", "--url", url), "UNREACHABLE", url)


def test_a_key_is_read_from_its_variable(tmp_path: Path) -> None:
    """Without a key the message names the variable."""
    keys = tmp_path / "keys.txt"
    keys.write_text("anna-0123456789abcdef\n")
    with running_worker(api_key_file=str(keys)) as guarded:
        known = {"WORKER_ORCD_API_KEY": "anna-0123456789abcdef"}
        assert json.loads(run("ps", "--json", worker=guarded, **known).stdout)["jobs"] == []
        assert run("execute", '{"text": "ok"}', worker=guarded, **known).stdout == "ok\n"
        for words in (("execute", "hello"), ("chat",), ("ps",), ("cancel", "a"), ("logs",)):
            refused = run(*words, worker=guarded, stdin="hello\n")
            assert_one_line(refused, "UNAUTHORIZED", "WORKER_ORCD_API_KEY")


@pytest.mark.parametrize("command", ["execute", "chat", "cancel", "ps", "logs", "demo"])
def test_help_says_what_exit_codes_mean(command: str) -> None:
    """For scripts."""
    assert "Exit codes: 0 " in run(command, "--help").stdout


def test_the_url_flag_beats_its_variable(worker: RunningWorker) -> None:
    """`--url` takes precedence over WORKER_ORCD_URL."""
    result = run("ps", "--json", "--url", worker.url, WORKER_ORCD_URL="http://127.0.0.1:1")
    assert json.loads(result.stdout)["health"]["status"] == "healthy"


# serve: what it refuses before anything is loaded.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--port", "80"), ("--port", "'80'", "1024 to 65535")),
        (("--port", "http"), ("--port", "'http'", "1024 to 65535")),
        (("--worker-id", "worker-1"), ("--worker-id", "'worker-1'", "UUID")),
        (("--host", "0.0.0.0"), ("--host", "--insecure")),  # noqa: S104  # it is refused
        (("--api-key-file", "keys.txt"), ("--api-key-file", "No such file")),
        (("--exact", "--parallel", "64"), ("--exact", "256 cells")),
        (("--gpu-device", "-1"), ("--gpu-device", "'-1'")),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") and len(value) <= 3 else None,
)
def test_serve_refuses_a_bad_option(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """The line has what was given and what is required."""
    if words[0] == "--exact":
        words, parts = (*words, "--context-length", "8192"), ("--exact", "= 128 cells", "256 or more")
    assert_one_line(run(*words), "INVALID_REQUEST", *parts)


def test_serve_is_the_default_command() -> None:
    """`worker-orcd --port 80` and `worker-orcd serve --port 80` are the same."""
    assert run("--port", "80").stderr == run("serve", "--port", "80").stderr


def test_serve_takes_options_from_the_environment() -> None:
    """An invalid variable is refused like a flag."""
    assert_one_line(run("serve", WORKER_ORCD_PORT="80"), "INVALID_REQUEST", "WORKER_ORCD_PORT", "'80'")


def test_a_flag_beats_its_variable(tmp_path: Path) -> None:
    """With the flag given, its variable is not read; other variables still count."""
    missing = tmp_path / "missing.gguf"
    result = run("--port", str(free_port()), WORKER_ORCD_PORT="80", WORKER_ORCD_MODEL=str(missing))
    assert_one_line(result, "MODEL_LOAD_FAILED", str(missing))
    result = run("--no-insecure", "--model", str(missing), WORKER_ORCD_INSECURE="true")
    assert_one_line(result, "MODEL_LOAD_FAILED", str(missing))


def test_serve_refuses_a_model_that_is_not_there(tmp_path: Path) -> None:
    """The line names the missing file."""
    assert_one_line(run("--model", str(tmp_path / "test.gguf")), "MODEL_LOAD_FAILED", "test.gguf")


def test_serve_refuses_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    """The line says what was required and what was found."""
    model = tmp_path / "story.gguf"
    model.write_text("Once upon a time there was a file that was no model at all.")
    assert_one_line(run("--model", str(model)), "MODEL_LOAD_FAILED", str(model), "GGUF")


@pytest.mark.parametrize("kept", [20, 100_000, 50_000_000])
def test_serve_refuses_a_truncated_model(tmp_path: Path, kept: int) -> None:
    """Wherever the download broke off."""
    model = tmp_path / "half.gguf"
    with bundled_model().open("rb") as whole:
        model.write_bytes(whole.read(kept))
    assert_one_line(run("--model", str(model)), "MODEL_LOAD_FAILED", str(model))


def test_serve_refuses_a_port_in_use() -> None:
    """The port is named before anything is loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_line(run("--port", port), "INVALID_REQUEST", port, "in use")


def test_serve_refuses_a_host_that_has_no_address() -> None:
    """In the resolver's words."""
    result = run("--host", "nowhere.invalid", "--insecure", "--port", str(free_port()))
    assert_one_line(result, "INVALID_REQUEST", "--host nowhere.invalid")
    assert "Unknown error" not in result.stderr


def test_serve_refuses_a_memory_file_that_it_cannot_have() -> None:
    """In one line, also if the first engine has been started."""
    limited = ["bash", "-c", 'ulimit -f 1000 && exec "$0" "$@"', sys.executable, "-m", "worker_orcd"]
    result = subprocess.run(
        [*limited, "--port", str(free_port())], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("worker-orcd: INVALID_REQUEST: --prefix-cache-mib 1024: required "), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.real
def test_serve_refuses_a_gpu_that_the_build_cannot_use() -> None:
    """The engine detects it; the worker cleans up, and ends with one line."""
    result = run("--port", str(free_port()), "--gpu-device", "0", "--log-format", "json")
    *narrated, last = result.stderr.splitlines()
    assert last.startswith("worker-orcd: MODEL_LOAD_FAILED: --gpu-device 0: required ")
    assert all(line.startswith("{") for line in narrated)
    assert json.loads(narrated[-1])["action"] == "shutdown"
    assert (result.stdout, result.returncode) == ("", 1)
