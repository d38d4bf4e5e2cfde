"""The pure parts of `make bench-beside`: texts, statistics, the tables, and what is built and how."""

import json
from pathlib import Path

import pytest

from bench.beside.client import unchunked
from bench.beside.peer import ROOT, compiler_flags, requirement
from bench.beside.report import Row, line, markdown, number, quantile, table
from bench.beside.texts import WORDS, words


def test_texts_have_the_words_that_were_asked_for_and_differ_by_their_seed() -> None:
    """Both servers get the same text, and no two texts share a beginning."""
    text = words("a/1", 1200)
    assert len(text.split()) == 1200
    assert text == words("a/1", 1200) != words("a/2", 1200)
    assert text.split()[:8] != words("a/2", 1200).split()[:8]
    assert set(text.split()) <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_a_ratio_is_that_of_each_round_not_of_the_medians() -> None:
    """Each round compares what was measured side by side."""
    rounds = [{"ours": 10.0, "peer": 20.0}, {"ours": 40.0, "peer": 50.0}, {"ours": 30.0, "peer": 100.0}]
    found = line(Row("first token", target=0.5), rounds)
    assert found.cells == (
        "first token",
        "30.0 (10.0 to 40.0)",
        "peer: 50.0 (20.0 to 100)",
        "0.50 (0.30 to 0.80)",
        "≤ 0.5",
        "yes",
    )


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("lower", target=2.0, beside=None), "yes"),
        (Row("the worst counts", target=2.0, beside=None, worst=True), "NO"),
        (Row("higher", target=2.0, beside=None, at_least=True), "yes"),
        (Row("higher, the worst counts", target=2.0, beside=None, at_least=True, worst=True), "NO"),
        (Row("not met", target=1.9, beside=None), "NO"),
        (Row("for information", beside=None), "-"),
    ],
)
def test_a_target_is_met_by_the_median_or_by_the_worst_round(row: Row, met: str) -> None:
    """As the row says."""
    assert line(row, [{"ours": 1.0}, {"ours": 2.0}, {"ours": 3.0}]).met == met


def test_a_row_without_its_figures_is_shown_empty() -> None:
    """Without llama-server, or where a workload failed."""
    assert line(Row("decode", target=1.0), [{"ours": 1.0}]).cells[1:] == ("-", "-", "-", "≤ 1", "-")


def test_quantiles_and_numbers() -> None:
    """The value that 99 of 100 do not exceed; three digits that count."""
    assert quantile(range(100), 0.99) == 99
    assert quantile([5.0], 0.99) == 5.0
    assert [number(value) for value in (0.056, 1.234, 12.34, 1234.5)] == ["0.06", "1.23", "12.3", "1,234"]
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_the_json_becomes_a_markdown_table() -> None:
    """What docs/performance.md shows is made from the file by one command."""
    found = line(Row("decode", target=1.0), [{"ours": 2.0, "peer": 1.0}])
    result = {"conditions": {"machine": "m"}, "lines": [dict(zip(found.__slots__, found.cells, strict=True))]}
    shown = markdown(json.loads(json.dumps(result))).splitlines()
    assert shown == [
        "machine: m",
        "",
        "| workload | ours | beside | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
        "| decode | 2.00 | peer: 1.00 | 2.00 | ≤ 1 | NO |",
    ]
    assert "decode    2.00" in table([found])


def test_the_peer_is_built_from_the_locked_release_with_the_flags_of_our_own_build() -> None:
    """The lock names the release's hash; CMAKE_ARGS beats what any CPU with AVX2 gets."""
    pinned = requirement((Path(ROOT) / "requirements.lock").read_text())
    assert pinned.startswith("llama-cpp-python==")
    assert "--hash=sha256:" in pinned
    assert "# via" not in pinned
    cpu = {"avx2", "bmi2", "f16c", "fma"}
    assert compiler_flags("", cpu) == ["-DGGML_NATIVE=OFF"]
    assert compiler_flags("-DGGML_CUDA=ON -DX=1", cpu) == ["-DGGML_CUDA=ON", "-DX=1"]
    assert compiler_flags("", {"neon"}) == []


def test_a_body_is_put_together_from_chunks() -> None:
    """Also where a chunk ends within a line."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert unchunked(head + b"3\r\ndat\r\n4\r\na: x\r\n0\r\n\r\n") == b"data: x"
    assert unchunked(b"HTTP/1.1 200 OK\r\n\r\nwhole") == b"whole"
