"""Prompts with a gap: the order of their tokens is the one that llama-server documents."""

import json
from dataclasses import replace
from typing import Any

import pytest

from worker_orcd.engine.infill import InfillTokens, infill
from worker_orcd.engine.model import PromptRefused

PRE, SUF, MID, REP, SEP, BOS = 1001, 1002, 1003, 1004, 1005, 1006
ALL = InfillTokens(PRE, SUF, MID, REP, SEP)
NAMES = {PRE: "<PRE>", SUF: "<SUF>", MID: "<MID>", REP: "<REP>", SEP: "<SEP>", BOS: "<BOS>"}
CHUNKS = [{"filename": "a.py", "text": "one"}, {"filename": "b.py", "text": "two"}]


def shown(tokens: list[int]) -> str:
    """Each byte as text, each special token by its name."""
    return "".join(NAMES.get(token) or chr(token) for token in tokens)


def filled(
    tokens: InfillTokens = ALL, most: int = 1000, beginning: tuple[int, ...] = (), **given: Any
) -> str:
    """Such a prompt, with a token for each byte."""
    request = {"prefix": "(", "suffix": ")", "prompt": "", "extra": None, "reserve": 0} | given
    return shown(infill(json.dumps(request), tokens, list(beginning), lambda text: list(text.encode()), most))


def test_a_gap_alone_has_no_repository() -> None:
    """As `suffix` of a completion asks for it."""
    assert filled() == "<PRE>(<SUF>)<MID>"
    assert filled(beginning=(BOS,)) == "<BOS><PRE>(<SUF>)<MID>"


def test_files_come_before_the_gap_and_the_prompt_behind_it() -> None:
    """The repository-level pattern of llama-server's documentation."""
    files = "<SEP>a.py\none<SEP>b.py\ntwo"
    expected = f"<BOS><REP>myproject\n{files}<SEP>filename\n<PRE>(<SUF>)<MID>x = "
    assert filled(extra=CHUNKS, prompt="x = ", beginning=(BOS,)) == expected
    assert filled(extra=[]) == "<REP>myproject\n<SEP>filename\n<PRE>(<SUF>)<MID>"


def test_without_tokens_for_files_they_are_snippets() -> None:
    """Simply prefixed, as it documents that."""
    snippet = "\n\n--- snippet ---\n\n"
    plain = replace(ALL, repository=None, file=None)
    assert filled(plain, extra=CHUNKS) == f"{snippet}one{snippet}two<PRE>(<SUF>)<MID>"
    assert filled(plain, extra=[]) == "<PRE>(<SUF>)<MID>"


@pytest.mark.parametrize(("reserve", "kept"), [(0, 8), (3, 5), (1000, 0), (None, 3)])
def test_of_files_the_end_is_kept_that_fits(reserve: int | None, kept: int) -> None:
    """Beside the gap, which is never cut, and the tokens to generate; where they are not known, beside a quarter."""
    files = "<REP>myproject\n<SEP>a.py\none<SEP>b.py\ntwo<SEP>filename\n"
    gap = "<PRE>(<SUF>)<MID>"
    found = filled(most=20, extra=CHUNKS, reserve=reserve, prompt="1234567")
    assert found == files[len(files) - kept :] + gap + "1234567"


@pytest.mark.parametrize("missing", ["prefix", "suffix", "middle"])
def test_a_vocabulary_without_the_tokens_is_refused(missing: str) -> None:
    """By the field that asks for them, and by what is missing."""
    with pytest.raises(PromptRefused, match=f"its vocabulary has no {missing} token") as refused:
        filled(replace(ALL, **{missing: None}))
    assert refused.value.param == "suffix"
