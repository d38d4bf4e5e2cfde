"""`worker-orcd logs`: the worker's log events, readable or as JSON."""

import json
import re
import signal
from typing import Any

from tests.helpers import fresh_id
from tests.relay import Relay
from tests.terminal import CTRL_C, Piped, Terminal
from worker_orcd.narration.render import BoundedLine, pretty
from worker_orcd.testing.harness import RunningWorker, running_worker


class Following:
    """A `worker-orcd logs --json` and what it has shown so far."""

    def __init__(self, worker: RunningWorker, *words: str) -> None:
        self._logs = Piped(worker, "logs", "--json", *words)

    def until(self, **fields: object) -> list[dict[str, Any]]:
        """Wait for an event with these fields. Returns the events since the last call."""
        assert self._logs.process.stdout is not None
        shown = []
        while line := self._logs.process.stdout.readline():
            shown.append(json.loads(line))
            if fields.items() <= shown[-1].items():
                return shown
        raise EOFError(shown[-3:])

    def interrupted(self) -> tuple[int, str]:
        """Press Ctrl-C. Returns the exit code and stderr."""
        self._logs.process.send_signal(signal.SIGINT)
        code, _, said = self._logs.end()
        return code, said


def finished(worker: RunningWorker) -> str:
    """Run a job to its end. Returns its id."""
    return worker.execute(fresh_id("logs"), max_tokens=2).finished().job_id


def test_what_was_logged_and_what_is_logged_is_shown_as_the_worker_logs_it(worker: RunningWorker) -> None:
    """Until Ctrl-C, which is a clean end: exit code 0, and no message."""
    before = finished(worker)
    logs = Following(worker)
    shown = logs.until(action="execute_end", job_id=before)
    after = finished(worker)
    shown += logs.until(action="execute_end", job_id=after)
    assert logs.interrupted() == (0, "")
    logged = worker.narration()
    assert [reported for reported in shown if reported not in logged] == []


def test_only_what_belongs_to_a_job_or_matters(worker: RunningWorker) -> None:
    """`--job` and `--level`, alone and together."""
    mine, other = finished(worker), finished(worker)
    worker.cancel(mine)
    shown = Following(worker, "--job", mine)
    actions = [reported["action"] for reported in shown.until(action="cancel")]
    assert actions[-2:] == ["execute_end", "cancel"]
    assert shown.interrupted() == (0, "")
    warnings = Following(worker, "--level", "warn")
    reported = warnings.until(action="cancel", job_id=mine)
    assert {one["level"] for one in reported} <= {"WARN", "ERROR"}
    assert warnings.interrupted() == (0, "")
    both = Following(worker, "--job", other, "--level", "WARN")
    worker.cancel(other)
    assert [one["action"] for one in both.until(action="cancel")] == ["cancel"]
    assert both.interrupted() == (0, "")


def test_piped_it_reads_as_the_workers_own_pretty_narration(worker: RunningWorker) -> None:
    """It has the same columns, without colours."""
    job_id = finished(worker)
    event = worker.narrated("execute_end", job_id=job_id)
    logs = Piped(worker, "logs", "--job", job_id)
    assert logs.process.stdout is not None
    expected = BoundedLine(pretty(colors=False))(None, "", dict(event))
    lines = []
    while expected not in lines:
        lines.append(logs.process.stdout.readline().decode().rstrip("\n"))
    assert all("\x1b" not in line for line in lines)
    logs.process.send_signal(signal.SIGINT)
    assert logs.end()[0] == 0


def test_on_a_terminal_it_is_coloured_and_ctrl_c_ends_it(worker: RunningWorker) -> None:
    """The terminal is restored."""
    job_id = finished(worker)
    with Terminal(worker, "logs", "--job", job_id) as terminal:
        terminal.shows(r"INFO .*execute_end +Job .* ends after 2 tokens")
        assert "\x1b[" in terminal.raw()
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
        assert terminal.attributes() == terminal.before


def test_a_worker_that_restarts_is_waited_for_and_followed() -> None:
    """Both are reported. The new worker's events are shown from the first one on, and none of the old worker's
    twice."""
    with running_worker() as first:
        logs = Following(first)
        shown = logs.until(action="ready")
        assert first.stop() == 0
        with running_worker(port=first.port) as second:
            shown += logs.until(action="ready", worker_id=second.health()["worker_id"])
            code, said = logs.interrupted()
    assert code == 0
    assert re.fullmatch(
        r"worker-orcd: waiting for the worker at http\S+ to come back: it shut down\n"
        r"worker-orcd: the worker at http\S+ is back\n",
        said,
    )
    starts = [reported["worker_id"] for reported in shown if reported["action"] == "startup"]
    assert len(starts) == len(set(starts)) == 2


def test_a_connection_that_breaks_loses_and_doubles_nothing(worker: RunningWorker, relay: Relay) -> None:
    """It continues after the last event received, and says that the worker was away."""
    before = finished(worker)
    logs = Following(worker, "--url", relay.url)
    shown = logs.until(action="execute_end", job_id=before)
    relay.cut()
    during = finished(worker)
    shown += logs.until(action="execute_end", job_id=during)
    code, said = logs.interrupted()
    assert (code, said.count("waiting for"), said.count("is back")) == (0, 1, 1)
    reported = [json.dumps(one) for one in shown]
    assert len(reported) == len(set(reported))
    mine = [one["action"] for one in shown if one.get("job_id") == during]
    assert mine == [one["action"] for one in worker.narration() if one.get("job_id") == during]
