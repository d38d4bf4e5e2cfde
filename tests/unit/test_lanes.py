"""The quick lane proves every guarantee, and the pages list what is left to the deep lane."""

import re
from pathlib import Path

import pytest

from tests import lanes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "traceability.md").read_text(encoding="utf-8")
GUARANTEES = [f"G{number}" for number in range(1, 13)]


def named_for(guarantee: str) -> list[str]:
    """The tests that the page names for it, as `lanes` writes them."""
    [row] = re.findall(rf"^\| {guarantee} \| .*$", PAGE, re.MULTILINE)
    return re.findall(r"`tests/([^`]+)`", row)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_the_quick_lane_has_a_test_of_each_guarantee(guarantee: str) -> None:
    """That it fails when the mechanism is broken was tried by hand."""
    assert [name for name in named_for(guarantee) if not lanes.is_deep(name)], named_for(guarantee)


def test_the_page_lists_what_is_deep() -> None:
    """All of it, and nothing else."""
    [section] = re.findall(r"^## Lanes\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^- `tests/([^`]+)`$", section, re.MULTILINE) == list(lanes.DEEP)


@pytest.mark.parametrize("name", [*lanes.DEEP, *lanes.SERIAL, *lanes.SAMPLED, *lanes.FIRST])
def test_what_is_listed_exists(name: str) -> None:
    """A test that is renamed would otherwise change its lane without a word."""
    place, _, test = name.partition("::")
    path = ROOT / "tests" / place
    assert path.exists()
    function, _, _ = test.partition("[")
    assert not function or f"def {function}(" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "deep"),
    [
        ("faults/test_engine.py", True),
        ("faults", True),
        ("faults_of_others/test_it.py", False),
        ("real/test_demo.py::test_demo_shows_every_promise_kept", True),
        ("real/test_stopping.py::test_computing_stops_in_time", False),
        ("real/test_stopping.py::test_computing_stops_in_time[ending-20-decode]", True),
        ("real/test_stopping.py::test_computing_stops_in_time[decoding-25-decode]", False),
        ("integration/test_schema.py", True),
        ("integration/test_cancel.py", False),
    ],
)
def test_a_place_holds_all_that_is_in_it(name: str, deep: bool) -> None:
    """A folder its files, a file its tests, a test all its parameters."""
    assert lanes.is_deep(name) is deep


@pytest.mark.parametrize(
    ("name", "lane", "group", "imported"),
    [
        ("unit/test_lanes.py", "quick", "", True),
        ("unit/test_lanes.py", "quick", "parallel", True),
        ("unit/test_lanes.py", "quick", "serial", False),
        ("unit/test_lanes.py", "deep", "parallel", False),
        ("integration", "deep", "serial", True),
        ("integration/test_cancel.py", "quick", "serial", True),
        ("integration/test_cancel.py", "quick", "parallel", True),
        ("integration/test_cancel.py", "deep", "serial", True),
        ("integration/test_proxy.py", "quick", "parallel", False),
        ("integration/test_proxy.py", "quick", "serial", False),
        ("integration/test_proxy.py", "deep", "parallel", True),
        ("property", "deep", "parallel", False),
        ("property", "nightly", "parallel", True),
        ("models/test_aborts.py", "deep", "parallel", True),
        ("features/test_cancel_feature.py", "quick", "parallel", False),
        ("models/test_preemption.py", "nightly", "parallel", True),
    ],
)
def test_files_without_a_test_of_the_lane_and_group_are_not_imported(
    name: str, lane: str, group: str, imported: bool
) -> None:
    """A file that is left out though it holds a test of the lane would be a test that never runs."""
    assert lanes.may_run(name, lane, group) is imported


def test_files_that_share_a_real_worker_run_in_one_process_and_begin_first() -> None:
    """All others are scopes of their own."""
    shared = {lanes.scope(f"{file}::test_it[1]") for file in lanes.TOGETHER}
    assert len(shared) == 1
    assert lanes.scope("real/test_demo.py::test_it") == "real/test_demo.py"
    names = ["unit/test_lanes.py::test_it", "real/test_demo.py::test_it", "real/test_stopping.py::test_it[1]"]
    assert sorted(names, key=lanes.turn) == names[::-1]


def test_only_the_list_makes_a_test_deep_or_serial() -> None:
    """A file is left out by the list alone, so a mark in the file would be a test that never runs."""
    marked = re.compile(r"pytest\.mark\.(?:deep|serial)\b")
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert [path for path in files if marked.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(("lane", "tried"), [("quick", 40), ("nightly", 800)])
def test_the_nightly_lane_tries_more_examples(monkeypatch: pytest.MonkeyPatch, lane: str, tried: int) -> None:
    """Of what is random."""
    monkeypatch.setattr(lanes, "LANE", lane)
    assert lanes.examples(40) == tried
