"""`worker-orcd ps`: a list of the jobs, and the watch with its keys."""

import asyncio
import contextlib
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests.helpers import at_rest
from tests.terminal import CTRL_C, CTRL_Z, Terminal, run
from worker_orcd.cli.keyboard import named
from worker_orcd.cli.watch import _Watching
from worker_orcd.client import Client
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

ENDLESS = '{"token_ms": 5}'
"""A prompt whose job runs for about ten seconds."""
ALTERNATE, ORDINARY = "\x1b[?1049h", "\x1b[?1049l"
"""What makes a terminal show its other screen, and its own again."""
HOME = "\x1b[H"
"""With this each picture begins."""
ESTABLISHED = "01"
"""A connection's state in /proc/net/tcp."""
NO_CURSOR, CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def _watched() -> Iterator[RunningWorker]:
    with running_worker() as watched:
        yield watched


@pytest.fixture
def worker(_watched: RunningWorker) -> Iterator[RunningWorker]:
    """A worker of this file: what is shown depends on the ids of all its jobs, also ended ones."""
    yield _watched
    at_rest(_watched)


def several(worker: RunningWorker, *names: str, **fields: str | None) -> list[Stream]:
    """Jobs that run, in this order."""
    return [worker.execute(name, ENDLESS, **fields).tokens_seen(1) for name in names]


def selected(terminal: Terminal, job_id: str) -> None:
    """Wait until this job is shown as the selected one."""
    row = re.compile(rf"\x1b\[7m{job_id}(?: |\x1b)")
    wait_until(
        lambda: any(map(row.search, terminal.raw().split(HOME)[-2:])),
        what=f"{job_id} to be selected",
    )


def assert_restored(terminal: Terminal) -> None:
    """The terminal has its settings, its own screen and its cursor again."""
    assert terminal.attributes() == terminal.before
    # A process may have stopped or ended before all that it wrote has been read here.
    with contextlib.suppress(TimeoutError):
        wait_until(
            lambda: (
                terminal.raw().count(ALTERNATE) == terminal.raw().count(ORDINARY)
                and terminal.raw().rfind(CURSOR) > terminal.raw().rfind(NO_CURSOR)
            ),
            what="what it wrote last",
        )
    raw = terminal.raw()
    assert raw.count(ALTERNATE) == raw.count(ORDINARY) > 0
    assert raw.rindex(CURSOR) > raw.rindex(NO_CURSOR)


# Once.


def test_ps_shows_the_worker_and_its_jobs(narrow: RunningWorker) -> None:
    """Piped, the list is printed once: a line about the worker, then live jobs before ended ones."""
    narrow.execute("cli-ps-old", ENDLESS).tokens_seen(1)
    narrow.cancel("cli-ps-old")
    stream = narrow.execute("cli-ps-live", ENDLESS).tokens_seen(1)
    result = run("ps", "--recent", "1", worker=narrow)
    narrow.cancel("cli-ps-live")
    stream.finished()
    header, titles, *rows = result.stdout.splitlines()
    assert header.startswith("healthy  scripted on cpu  KV cells ")
    assert "running 1  queued 0  engine " in header
    assert titles.split() == ["JOB", "STATE", "PHASE", "PROMPT", "OUT", "AGE", "STOPPED", "FREED"]
    assert rows[0].split()[:3] == ["cli-ps-live", "running", "decode"]
    assert rows[1].split()[:3] == ["cli-ps-old", "cancelled", "decode"]
    assert rows[1].rstrip().endswith(" ms")
    assert result.returncode == 0


def test_ps_as_json(narrow: RunningWorker) -> None:
    """`--json` gives health and records, for scripts."""
    narrow.execute("cli-ps-json", '{"text": "a"}').finished()
    shown = json.loads(run("ps", "--json", "--recent", "1", worker=narrow).stdout)
    assert shown["health"]["status"] == "healthy"
    assert [job["job_id"] for job in shown["jobs"]] == ["cli-ps-json"]


def test_ps_on_a_terminal_is_a_look(worker: RunningWorker) -> None:
    """The list is printed once, as when piped; the screen is not switched."""
    worker.execute("ps-look", '{"text": "a"}').finished()
    with Terminal(worker, "ps") as terminal:
        terminal.shows("healthy  scripted on cpu")
        terminal.shows(r"ps-look\s+completed")  # beside long ids, each job has two lines
        assert terminal.ended() == 0
        assert ALTERNATE not in terminal.raw()


def test_jobs_of_groups_are_shown_with_them(worker: RunningWorker) -> None:
    """The column is there only if a job has a group."""
    worker.execute("ps-group", '{"text": "a"}', group="ps-g").finished()
    rows = run("ps", worker=worker).stdout.splitlines()[1:]
    assert rows[0].split()[-1] == "GROUP"
    assert rows[1].split()[0] == "ps-group"
    assert rows[1].split()[-1] == "ps-g"


def test_ids_are_shown_as_they_are() -> None:
    """Also where a part of them is an emoji's name. The worker is its own: many long ids would squeeze the columns."""
    with running_worker(parallel=2) as worker:
        worker.execute("run:100:7", '{"text": "a"}', group="team:fire:1").finished()
        rows = run("ps", worker=worker).stdout.splitlines()[2:]
        assert [rows[0].split()[0], rows[0].split()[-1]] == ["run:100:7", "team:fire:1"]
        (stream,) = several(worker, "run:100:8", group="team:fire:1")
        with Terminal(worker, "ps", "--watch") as terminal:
            terminal.shows("run:100:8 .* team:fire:1")
            terminal.type("c")
            terminal.shows("job run:100:8 cancelled")
            terminal.type("q")
            assert terminal.ended() == 0
            assert "job run:100:8 cancelled" in terminal.raw()[terminal.raw().rindex(ORDINARY) :]
        stream.finished()


@pytest.mark.parametrize("words", [("--watch",), ("--watch", "--json")], ids=" ".join)
def test_only_a_terminal_can_watch(worker: RunningWorker, words: tuple[str, ...]) -> None:
    """Without a terminal it is a usage error, exit code 2."""
    result = run("ps", *words, worker=worker)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--watch requires a terminal" in result.stderr


# Watched.


def test_the_watch_continues_until_q(worker: RunningWorker) -> None:
    """It shows changes, and restores the terminal."""
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("running 0")
        (stream,) = several(worker, "ps-watched")
        terminal.shows("ps-watched +running")
        worker.cancel("ps-watched")
        terminal.shows("ps-watched +cancelled")
        terminal.type("q")
        assert terminal.ended() == 0
        assert_restored(terminal)
    stream.finished()


def test_c_cancels_the_selected_job_and_shows_its_receipt(worker: RunningWorker) -> None:
    """Selected with j, k and the arrows; no other job is touched. The receipt stays when the watch is left."""
    streams = several(worker, "ps-a", "ps-b", "ps-c")
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("ps-c +running")
        selected(terminal, "ps-a")
        terminal.type("jj")
        selected(terminal, "ps-c")
        terminal.type("k\x1b[A\x1b[B")
        selected(terminal, "ps-b")
        terminal.type("c")
        terminal.shows(r"job ps-b cancelled [(]reason client[)]: stopped after [\d.]+ ms, freed after")
        streams[1].finished()
        selected(terminal, "ps-c")
        assert {worker.record(name)["state"] for name in ("ps-a", "ps-c")} == {"running"}
        terminal.type("q")
        assert terminal.ended() == 0
        assert_restored(terminal)
        after = terminal.raw()[terminal.raw().rindex(ORDINARY) :]
        assert "job ps-b cancelled (reason client): stopped after " in after
    for name in ("ps-a", "ps-c"):
        worker.cancel(name)
    for stream in streams:
        stream.finished()


def test_the_selection_stays_where_it_was_and_never_on_an_ended_job(worker: RunningWorker) -> None:
    """After `c` the next live job is selected, at the end of the list the one before, then none: ended jobs cannot be
    selected, and `c` stops nothing. The one that is selected in place of another is stopped by a second `c` only."""
    streams = several(worker, "ps-one", "ps-two", "ps-three")
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("ps-three +running")
        terminal.type("j")
        selected(terminal, "ps-two")
        terminal.type("c")
        terminal.shows("job ps-two cancelled")
        selected(terminal, "ps-three")
        terminal.type("c")
        terminal.shows("moved to job ps-three: press c again")
        terminal.type("c")
        terminal.shows("job ps-three cancelled")
        selected(terminal, "ps-one")
        terminal.type("jjj")
        terminal.type("c")
        terminal.shows("job ps-one cancelled")
        terminal.type("kc")
        terminal.shows("no job is live")
        assert "\x1b[7m" not in terminal.raw().split(HOME)[-1]
        terminal.type("q")
        assert terminal.ended() == 0
    for stream in streams:
        stream.finished()
    at_rest(worker)


@pytest.mark.parametrize(
    ("key", "fields", "stopped"),
    [("c", {}, "job ps-beside cancelled"), ("g", {"group": "ps-both"}, "group ps-both: 1 cancelled")],
    ids="cg",
)
def test_no_key_stops_the_job_that_takes_the_place_of_one_that_ended(
    worker: RunningWorker, key: str, fields: dict[str, str], stopped: str
) -> None:
    """The key may have been meant for the ended job. Pressed again, or after a move, it is for this one."""
    meant, beside = several(worker, "ps-meant"), several(worker, "ps-beside", **fields)
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("ps-beside +running")
        selected(terminal, "ps-meant")
        worker.cancel("ps-meant")
        selected(terminal, "ps-beside")
        terminal.type(key)
        terminal.shows(f"the selection has moved to job ps-beside: press {key} again to stop it")
        assert worker.record("ps-beside")["state"] == "running"
        terminal.type(key)
        terminal.shows(stopped)
        terminal.type("q")
        assert terminal.ended() == 0
    for stream in (*meant, *beside):
        stream.finished()


def test_a_key_stops_no_later_job_of_the_same_id(worker: RunningWorker) -> None:
    """The selected use of the id has ended since the watch last asked the worker."""

    async def press_c() -> str:
        async with Client(worker.url) as client:
            watching = _Watching(client, Console(file=io.StringIO()), 0)
            await watching.look()
            [seen] = watching._live_jobs()
            worker.cancel("ps-again")
            streams[0].finished()
            streams.extend(several(worker, "ps-again"))
            wait_until(lambda: worker.record("ps-again")["state"] == "running", what="the later job")
            return await watching._stop_job(seen)

    streams = several(worker, "ps-again")
    assert asyncio.run(press_c()).startswith(
        "job ps-again had already ended, and its id now belongs to another job"
    )
    assert worker.record("ps-again")["state"] == "running"
    worker.cancel("ps-again")
    streams[1].finished()
    at_rest(worker)


def test_g_cancels_the_group_of_the_selected_job(worker: RunningWorker) -> None:
    """No other job is cancelled; for a job without a group the key does nothing."""
    alone = several(worker, "ps-alone")
    together = several(worker, "ps-g1", "ps-g2", group="ps-together")
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("ps-g2 +running")
        terminal.type("g")
        terminal.shows("job ps-alone belongs to no group")
        terminal.type("jg")
        terminal.shows(r"group ps-together: 2 cancelled; the last, ps-g[12], stopped after [\d.]+ ms")
        assert worker.record("ps-alone")["state"] == "running"
        for stream in together:
            stream.finished()
            assert worker.record(stream.job_id)["receipt"]["reason"] == "client"
        worker.cancel("ps-alone")
        terminal.type("q")
        assert terminal.ended() == 0
    alone[0].finished()


@pytest.mark.parametrize(
    ("how", "code"),
    [(CTRL_C, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_however_the_watch_is_left_the_terminal_is_restored(
    worker: RunningWorker, how: str | signal.Signals, code: int
) -> None:
    """By a key or by a signal."""
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("q quit")
        assert terminal.attributes() != terminal.before
        if isinstance(how, str):
            terminal.type(how)
        else:
            terminal.process.send_signal(how)
        assert terminal.ended() == code
        assert_restored(terminal)


def asked_and_unanswered(worker: RunningWorker) -> bool:
    """Whether its system holds requests that it has not read."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [one for one in sockets if one[1].endswith(f":{worker.port:04X}") and one[3] == ESTABLISHED]
    return any(int(queues.partition(":")[2], 16) for *_, queues in (one[:5] for one in ours))


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningWorker]:
    """A worker that tests stop for a while."""
    with running_worker() as worker:
        yield worker


@pytest.mark.parametrize("how", ["q", CTRL_C, signal.SIGTERM], ids=["q", "Ctrl-C", "SIGTERM"])
def test_the_watch_of_a_worker_that_hangs_can_be_left(
    hanging: RunningWorker, how: str | signal.Signals
) -> None:
    """While it waits for the worker's answer."""
    with Terminal(hanging, "ps", "--watch") as terminal:
        terminal.shows("q quit")
        hanging.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: asked_and_unanswered(hanging), what="a look that is not answered")
            if isinstance(how, str):
                terminal.type(how)
            else:
                terminal.process.send_signal(how)
            assert terminal.process.wait(3) == (143 if how is signal.SIGTERM else 0)
            assert_restored(terminal)
        finally:
            hanging.process.send_signal(signal.SIGCONT)


def test_ctrl_z_gives_the_terminal_back_until_it_continues(worker: RunningWorker) -> None:
    """The shell finds its terminal restored; afterwards keys work again."""
    with Terminal(worker, "ps", "--watch") as terminal:
        terminal.shows("q quit")
        terminal.type(CTRL_Z)
        process = psutil.Process(terminal.process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, what="a process that is stopped")
        assert_restored(terminal)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.shows("q quit")
        terminal.type("q")
        assert terminal.ended() == 0
        assert_restored(terminal)


def test_the_watch_outlives_its_worker() -> None:
    """It says that the worker is unreachable, and continues when there is one again."""
    with running_worker() as first, Terminal(first, "ps", "--watch") as terminal:
        terminal.shows("healthy")
        first.process.kill()
        first.process.wait()
        terminal.shows("lost  ")
        with running_worker(port=first.port):
            terminal.shows("healthy")
            terminal.type("q")
            assert terminal.ended() == 0
            assert_restored(terminal)


def test_there_is_no_watch_of_no_worker(worker: RunningWorker) -> None:
    """The failure is one line on the ordinary screen, where it stays readable."""
    with Terminal(worker, "ps", "--watch", "--url", "http://127.0.0.1:1") as terminal:
        terminal.shows("worker-orcd: UNREACHABLE: ")
        assert terminal.ended() == 1
        assert ALTERNATE not in terminal.raw()


def test_the_selected_job_is_on_the_screen_however_many_there_are(worker: RunningWorker) -> None:
    """The list moves with it, and the keys stay below it."""
    streams = several(worker, *(f"ps-many-{place}" for place in range(12)))
    with Terminal(worker, "ps", "--watch", rows=10, columns=90) as terminal:
        terminal.shows("ps-many-0 ")
        terminal.type("j" * 11)
        selected(terminal, "ps-many-11")
        terminal.shows("ps-many-11 (?s:.*)q quit")
        terminal.type("q")
        assert terminal.ended() == 0
    for stream in streams:
        worker.cancel(stream.job_id)
    for stream in streams:
        stream.finished()
    at_rest(worker)


def test_what_a_terminal_sends_is_read_as_keys() -> None:
    """Both kinds of arrow keys; unknown input is ignored."""
    assert named(b"jk\x1b[A\x1bOBq") == ["j", "k", "up", "down", "q"]
    assert named(b"\x1b[1;5C\x1b[3~\x1b\x01\xff\n") == []
