"""Every example on every page is executed, or listed here with the reason why not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import PAGES, Block, blocks, commands
from tests.docs.reader import Reader
from tests.docs.shape import is_shown
from tests.helpers import fresh_id
from worker_orcd.testing.harness import RunningWorker, running_worker, wait_until

TESTING, REFERENCE = "docs/testing-your-client.md", "docs/reference.md"
ITS_OWN_TEST = "test_each_script_does_what_its_row_says"

NOT_RUN = {
    ("README.md", "git clone"): "where to clone it from is the reader's to know",
    ("README.md", "make demo"): "tests/real/test_demo.py runs it",
    ("README.md", "make test"): "is what runs this",
    ("README.md", "┌─ front process"): "a drawing",
    ("docs/architecture.md", "clients ── HTTP/SSE"): "a drawing",
    ("docs/architecture.md", "testing → cli → fleet"): "a drawing of what import-linter checks",
    (
        "docs/clients.md",
        "import ",
    ): "tests/clients/test_libraries.py, test_event_source.py and test_frameworks.py run it",
    ("docs/clients.md", "lm_eval "): "tests/clients/test_lm_eval.py runs it with tasks of its own",
    ("docs/clients.md", "aiperf "): "tests/clients/test_aiperf.py runs it with a tokenizer of its own",
    ("docs/mcp.md", "async with Client"): "tests/integration/test_mcp.py asks so",
    ("docs/clients.md", "model_list:"): "tests/clients/test_litellm.py starts the proxy with it",
    ("docs/performance.md", "make bench-beside"): "builds llama-server and measures for most of an hour",
    ("docs/gpu.md", "CMAKE_ARGS="): "compiles llama.cpp for a GPU",
    (
        "docs/gpu.md",
        'make run ARGS="--gpu-device 0"',
    ): "needs a GPU; tests/integration/test_cli.py has its refusal",
    ("docs/observability.md", "global:"): "tests/integration/test_observability.py has Prometheus take it",
    ("docs/fleet.md", "pip install"): "installs an extra",
    ("docs/fleet.md", "docker"): "needs a container engine",
    ("docs/fleet.md", "kubectl"): "needs a cluster",
    ("docs/running.md", "model_list:"): "tests/clients/test_litellm_several.py starts the proxy with it",
    ("docs/fleet.md", "worker-orcd fleet"): "tests/fleet/test_ray.py starts fleets",
    ("docs/fleet.md", "ray start"): "tests/fleet/test_cluster.py starts a cluster, and a fleet on it",
    ("docs/fleet.md", "clients ── HTTP/SSE"): "a drawing",
    ("docs/running.md", "make install"): "installs into the system",
    ("docs/running.md", "ln -sfn"): "changes the system",
    ("docs/running.md", "groupadd"): "changes the system",
    ("docs/running.md", "install "): "changes the system",
    ("docs/running.md", "systemctl"): "needs systemd",
    ("docs/running.md", "docker"): "needs a container engine",
    ("docs/running.md", "kubectl"): "needs a cluster",
    ("docs/running.md", "nginx -t"): "changes the system; tests/integration/test_proxy.py runs nginx",
    ("docs/running.md", "for address in"): "needs a cluster",
    ("docs/security.md", "uvx pip-audit"): "needs a network",
    ("docs/security.md", "docker buildx"): "needs a container engine and a network",
    ("docs/quickstart.md", "git clone"): "where to clone it from is the reader's to know",
    ("docs/quickstart.md", "make setup"): "has been done where tests run",
    ("docs/quickstart.md", "make demo"): "tests/real/test_demo.py runs it",
    ("docs/terminal.md", "worker-orcd ps --watch"): "tests/integration/test_cli_ps.py has a terminal for it",
    ("docs/terminal.md", "eval "): "tests/integration/test_cli_completion.py has the shells for it",
    ("docs/terminal.md", "worker-orcd completion fish | source"): "likewise",
    (TESTING, '{"text":'): ITS_OWN_TEST,
    (TESTING, '{"row_ms":'): ITS_OWN_TEST,
    (TESTING, '{"fail_at":'): ITS_OWN_TEST,
    (TESTING, '{"die_at":'): ITS_OWN_TEST,
    (TESTING, '{"hang_at":'): ITS_OWN_TEST,
    (TESTING, '{"spin_at":'): ITS_OWN_TEST,
}
"""Blocks and commands, by their page and how they begin, and why nothing executes them here."""

EXECUTE = "curl -N http://127.0.0.1:8080/execute -d"
BEFORE = {
    REFERENCE: (
        f"""{EXECUTE} '{{"job_id":"test-123","prompt":"Write a long story...","max_tokens":1000}}'""",
        """curl http://127.0.0.1:8080/cancel -d '{"job_id":"test-123"}'""",
        "curl http://127.0.0.1:8080/jobs/test-123",
        f"""{EXECUTE} '{{"job_id":"test-124","prompt":"Hello","max_tokens":4}}'""",
    )
}
"""What is typed before a page is read that shows answers and no questions."""


OF_THE_MODEL = ("README.md", "docs/quickstart.md")
"""Pages that promise what the bundled model says. The others are read beside the scripted engine."""


def _as_a_test(page: str) -> Any:
    return pytest.param(page, marks=pytest.mark.real) if page in OF_THE_MODEL else page


def excuse(page: str, text: str) -> tuple[str, str] | None:
    """The row of NOT_RUN for a block or a command, if there is one."""
    begins = text.lstrip()
    return next((row for row in NOT_RUN if row[0] == page and begins.startswith(row[1])), None)


def parts(block: Block) -> list[str]:
    """What is executed or excused on its own: each command, or all of the block."""
    return list(commands(block.text)) if block.language == "sh" else [block.text]


def follow(reader: Reader, block: Block, part: str) -> None:
    """Run a part of a block, or check that the output has it."""
    match block.language:
        case "mermaid":
            pass  # tests/browser/test_site.py looks at what is drawn.
        case "sh":
            reader.types(part)
        case "python":
            reader.runs(part)
        case "json" | "text":
            assert reader.saw(part), f"{block}: nothing on this page says this\n{reader.screen}"
        case _:
            pytest.fail(
                f"{block}: nobody can execute {block.language!r}; if that is right, say why in NOT_RUN"
            )


@pytest.mark.timeout(600)
@pytest.mark.needs("curl")
@pytest.mark.parametrize("page", [_as_a_test(page) for page in PAGES if list(blocks(page))])
def test_the_examples_of_a_page_work(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A reader who types them from top to bottom sees what the page shows."""
    usual = "real_worker" if page in OF_THE_MODEL else "scripted_worker"
    with Reader(tmp_path, lambda: request.getfixturevalue(usual)) as reader:
        for command in BEFORE.get(page, ()):
            reader.types(command)
        for block in blocks(page):
            for part in parts(block):
                if not excuse(page, part):
                    follow(reader, block, part)


def test_no_excuse_is_for_what_is_not_there() -> None:
    """Each row of the table has an example."""
    used = {excuse(page, part) for page in PAGES for block in blocks(page) for part in parts(block)}
    assert set(NOT_RUN) - used == set()


@pytest.mark.parametrize(
    "command", ["systemctl reload nginx", "make install TO=/opt/x", "sudo curl x", "rm x"]
)
def test_what_may_change_the_machine_is_not_typed(command: str, tmp_path: Path) -> None:
    """The table has the reason for each."""
    reader = Reader(tmp_path, lambda: pytest.fail("it asks nobody"))
    with pytest.raises(AssertionError, match="say why in NOT_RUN"):
        reader.types(command)


@pytest.fixture(scope="module")
def scripted() -> Any:
    """A worker of its own: its engine is killed here."""
    with running_worker() as worker:
        yield worker


@pytest.mark.parametrize("row", [block.text for block in blocks(TESTING) if block.language == "json"])
def test_each_script_does_what_its_row_says(row: str, scripted: RunningWorker) -> None:
    """As a prompt it ends as the table says."""
    script: dict[str, Any] = json.loads(row)
    if script.keys() & {"hang_at", "spin_at"}:
        wait_until(lambda: _hangs_until_killed(scripted, row), within_sec=30.0, what="an engine that hangs")
        return
    stream = scripted.ready().execute(fresh_id("script"), row, max_tokens=8).finished()
    ending = stream.events[-1].data
    reported = len(stream.tokens)
    match script:
        case {"text": text}:
            assert (ending["stop_reason"], stream.text) == ("stop", text)
        case {"row_ms": _}:
            assert ending["stop_reason"] == "length"
        case {"fail_at": at}:
            assert (ending["code"], reported) == ("INTERNAL", at)
        case {"die_at": at}:
            assert (ending["code"], reported) == ("ENGINE_LOST", at)
        case _:
            pytest.fail(f"nobody knows what {row} does")


def _hangs_until_killed(worker: RunningWorker, row: str) -> bool:
    """Whether a cancel got the engine killed. A cancel that arrives just before the hang does not."""
    pid = worker.ready().engine_pid
    stream = worker.execute(fresh_id("script"), row).tokens_seen(*json.loads(row).values())
    worker.cancel(stream.job_id)
    assert stream.finished().events[-1].data["code"] == "CANCELLED"
    return worker.ready().engine_pid != pid


def test_numbers_and_texts_may_differ_keys_and_words_may_not() -> None:
    """An answer is compared by its shape, an ending by what it says."""
    shown = '{"code": "CANCELLED", "tokens_out": 97, "receipt": null}'
    assert is_shown('{"code": "CANCELLED", "tokens_out": 3, "receipt": null}', shown)
    assert is_shown('202 {"receipt": null, "code": "CANCELLED", "tokens_out": 3}', shown)
    for other in (
        '{"code": "INTERNAL", "tokens_out": 3, "receipt": null}',
        '{"code": "CANCELLED"}',
        "CANCELLED",
    ):
        assert not is_shown(other, shown)
    assert not is_shown('{"code": "CANCELLED", "tokens_out": "3", "receipt": null}', shown)


def test_lines_are_shown_in_order_and_to_the_last() -> None:
    """Some may be left out before the end, none after it."""
    said = 'event: started\ndata: {"seed": 1}\n\nevent: token\n\nevent: end\ndata: {"tokens_out": 2}\nid: 3\n'
    assert is_shown(said, 'event: end\ndata: {"tokens_out": 42}\nid: 43')
    assert is_shown(said, "event: started\n…")
    assert not is_shown(said, "event: started")
    assert not is_shown(said, 'event: end\ndata: {"tokens": 42}\nid: 43')
    assert not is_shown(said, "event: end\nevent: started\n…")
    assert is_shown("job cli-697cf5a9: 1.5 ms", "job cli-0123abcd: 12 ms")
    assert not is_shown("job cli-697cf5a9: 1.5 s", "job cli-0123abcd: 12 ms")


def test_a_command_has_all_of_its_lines() -> None:
    """Backslashes, quotes and loops; remarks are none."""
    text = "# first\ncurl -N \\\n  -d 'a\nb'\n\nfor n in 1 2; do\n  echo $n\ndone\nls # there\n"
    assert list(commands(text)) == [
        "curl -N \\\n  -d 'a\nb'",
        "for n in 1 2; do\n  echo $n\ndone",
        "ls # there",
    ]
