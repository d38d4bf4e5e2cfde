"""A long text that is tokenized in parts has the tokens that llama.cpp gives it as a whole (`engine/text_cuts.py`)."""

import random
from typing import Any

import pytest

from tests.integration.test_tokenizer import VOCABULARIES, Load, by_llama_cpp, load  # noqa: F401  # A fixture.
from tests.tiny.vocabularies import VOCABULARIES as TINY
from worker_orcd.engine import text_cuts, tokenizer
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.model import PromptRefused
from worker_orcd.engine.text_cuts import TextCuts
from worker_orcd.engine.tokenizer import Tokenizer

CONTROL_BY_NAME = "<|fim_prefix|>"
"""llama.cpp makes it a control token, too, whatever the file says."""
USER_DEFINED = (
    CONTROL_BY_NAME,
    "\n",
    "\n\n",
    "\n\n\n",
    "  ",
    "aa",
    "aab",
    "bab",
    "|>",
    "<|x",
    "<|im_start|><|x",
    "é",
)
"""Overlapping each other and the control tokens."""
TEXTS = 300


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts have many cuts."""
    monkeypatch.setattr(text_cuts, "PART_BYTES", 12)
    monkeypatch.setattr(tokenizer, "PART_BYTES", 12)
    monkeypatch.setattr(text_cuts, "_WINDOW_BYTES", 4)


def _some_text(chance: random.Random, marks: list[str]) -> str:
    """Words, white space, and special tokens, some of them cut off."""
    parts = []
    for _ in range(chance.randint(1, 40)):
        mark = chance.choice(marks)
        begin = chance.choice([0, 0, 0, chance.randint(0, len(mark))])
        end = chance.choice([len(mark), len(mark), chance.randint(0, len(mark))])
        parts += [
            mark[begin:end],
            *chance.choices(["", " ", "\n", "a", "b", "the", "ship é"], k=chance.randint(0, 3)),
        ]
    return "".join(parts)


def _with(kind: str, control: tuple[str, ...] = ()) -> dict[str, Any]:
    """A vocabulary with the user-defined tokens, and with further control tokens."""
    known = TINY[kind]()
    tokens, types = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    new = tuple(token for token in (*control, *USER_DEFINED) if token not in tokens)
    scores = known.get("tokenizer.ggml.scores")
    scored = {} if scores is None else {"scores": (*scores, *[0.0] * len(new))}
    kinds = [3 if token in control else 4 for token in new]
    return {"tokens": (*tokens, *new), "token_type": (*types, *kinds), **scored}


def _check(vocabulary: Any, own: Tokenizer) -> None:
    marks = [token.text for token in own.special_tokens() if token.text]
    chance, cuts = random.Random(str(marks)), 0
    for _ in range(TEXTS):
        text = _some_text(chance, marks)
        assert own.encode(text, parse_special=True, add_special=True) == by_llama_cpp(vocabulary, text), text
        plain = by_llama_cpp(vocabulary, text, parse_special=False)
        assert own.encode(text, parse_special=False, add_special=True) == plain, text
        cuts += len(list(own._cuts.parts(text.encode()))) - 1
    assert cuts > TEXTS


@pytest.mark.parametrize("more", [False, True], ids=["as it is", "with user-defined tokens"])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_parts_have_the_tokens_of_the_whole(load: Load, name: str, more: bool) -> None:  # noqa: F811
    """Whatever tokens overlap, for random texts of each kind of vocabulary."""
    kind = "bpe" if name == "llama" else name.removeprefix("llama-")
    _check(*(load(name, **_with(kind)) if more else load(name)))


@pytest.mark.parametrize(
    ("control", "name"),
    [(("</s>", "<unk>", "<s>"), {"general.name": "phi3"}), (("<mask>",), {"pre": "jina-v2-es"})],
    ids=["after them", "before them"],
)
def test_tokens_that_take_white_space_with_them(
    load: Load,  # noqa: F811
    control: tuple[str, ...],
    name: dict[str, str],
) -> None:
    """By these names llama.cpp lets some strip it. It may be a token itself."""
    vocabulary, own = load("llama", **_with("bpe", control), **name)
    assert any(token.lstrip or token.rstrip for token in own.special_tokens())
    _check(vocabulary, own)


def test_a_long_run_of_overlapping_tokens_is_cut_only_at_its_beginning() -> None:
    """Nor does looking for cuts take long."""
    cuts = TextCuts([b"\n" * n for n in range(1, 32)])
    run = b"\n" * 100_000
    assert list(cuts.parts(run)) == [run]
    lines = (b"\n" * 40 + b"x") * 10
    assert list(cuts.parts(lines)) == [b"\n" * 40 + b"x"] * 10


def test_a_text_without_special_tokens_is_one_part() -> None:
    """As there is nothing to count either."""
    text = b"the ship " * 1000
    assert list(TextCuts([b"<s>", b""]).parts(text)) == [text]


def test_dropping_a_prompt_ends_its_tokenization(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """At the next cut."""
    _, own = load("llama")
    in_hand, parts = CurrentPrompt(), []
    encode = Tokenizer._encode

    def dropped_in_third(self: Tokenizer, raw: bytes, **given: bool) -> list[int]:
        parts.append(raw)
        if len(parts) == 3:
            in_hand.drop()
        return encode(self, raw, **given)

    monkeypatch.setattr(Tokenizer, "_encode", dropped_in_third)
    with pytest.raises(PromptRefused, match="the job has ended"):
        own.encode("the ship <|im_end|>" * 100, parse_special=True, add_special=False, in_hand=in_hand)
    assert len(parts) == 3
