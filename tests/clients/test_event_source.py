"""The `EventSource` of a Node package (docs/clients.md); tests/browser/test_event_source.py tests a browser's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import programs
from tests.clients.conftest import PAGE, as_here, generated
from tests.clients.test_openai_python import SLOW, cancelled, says
from tests.docs.blocks import blocks
from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker

pytestmark = pytest.mark.needs("node", "node-clients")
NODE = Path(__file__).parent / "node"


def run(file: Path, *arguments: str) -> str:
    """The output of a program."""
    command = [programs.find("node") or "", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def follow(worker: RunningWorker, job_id: str, *, close_after: int = 0) -> dict[str, Any]:
    """The events that an `EventSource` got until it was closed."""
    seen = run(NODE / "event_source.mjs", f"{worker.url}/jobs/{job_id}/events", str(close_after))
    return dict(json.loads(seen))


def test_it_comes_back_once_after_the_end_and_closes(served: RunningWorker) -> None:
    """It gets each event once."""
    stream = served.execute(fresh_id("followed"), says("abc"))
    seen = follow(served, stream.job_id)
    assert seen["statuses"] == [200, 204]
    assert seen["events"] == [event.id for event in stream.finished().events]


def test_closing_it_stops_nothing(served: RunningWorker) -> None:
    """Its job continues until it is cancelled."""
    stream = served.execute(fresh_id("closed"), SLOW)
    seen = follow(served, stream.job_id, close_after=3)
    assert (seen["statuses"], len(seen["events"])) == ([200], 3)
    generated(served, stream.job_id, served.record(stream.job_id)["tokens_out"] + 10)
    served.cancel(stream.job_id)
    stream.finished()


def test_the_example_on_the_page_cancels_its_job(served: RunningWorker, tmp_path: Path) -> None:
    """The program prints the job's last event, and ends."""
    (text,) = (block.text for block in blocks(PAGE) if "new EventSource" in block.text)
    (tmp_path / "node_modules").symlink_to(programs.PLACES["node-clients"])
    (tmp_path / "example.mjs").write_text(as_here(text, served), encoding="utf-8")
    printed = run(tmp_path / "example.mjs")
    assert cancelled(served, "event-source-1", "client")["phase"] == "decode"
    assert '"code":"CANCELLED"' in printed.replace(" ", "")
