"""A vocabulary's special tokens in a rendered conversation."""

import re

from hypothesis import given, strategies as st

from worker_orcd.engine.templates.special_tokens import Piece, SpecialToken, SpecialTokens, _alternatives

words = st.text(alphabet="<ab>", min_size=1, max_size=5)


@given(tokens=st.lists(words, min_size=1, max_size=8), text=st.text(alphabet="<ab>", max_size=20))
def test_the_grouped_pattern_finds_the_longest_token_at_each_place(tokens: list[str], text: str) -> None:
    """As one alternative for each token would, with the longest first."""
    plain = "|".join(sorted(map(re.escape, tokens), key=len, reverse=True))
    grouped = [match.span(1) for match in re.finditer(f"(?=({_alternatives(tokens)}))", text)]
    assert grouped == [match.span(1) for match in re.finditer(f"(?=({plain}))", text)]


@given(tokens=st.lists(words, max_size=8))
def test_every_token_has_one_of_the_characters_that_are_watched(tokens: list[str]) -> None:
    """Otherwise a client could write it."""
    watched = SpecialTokens([SpecialToken(text) for text in tokens]).characters
    assert all(any(character in text for character in watched) for text in tokens)


def test_marks_are_watched_rather_than_letters() -> None:
    """Fewer characters of a conversation are then aliased."""
    tokens = ["<|im_end|>", "</s>", "[INST]", "user"]
    assert sorted(SpecialTokens([SpecialToken(text) for text in tokens]).characters) == ["<", "[", "u"]


@given(text=st.text(alphabet="<ab>", max_size=20), client=st.sets(st.integers(0, 19)))
def test_pieces_are_the_whole_text(text: str, client: set[int]) -> None:
    """Nothing is lost, and no parsed token has a client's character."""
    tokens = SpecialTokens([SpecialToken("<a>"), SpecialToken("<"), SpecialToken("b>", control=False)])
    found = tokens.pieces(text, client)
    assert "".join(piece.text for piece in found) == text
    place = 0
    for piece in found:
        if piece.parsed and len(found) > 1 and piece.text != "b>":
            assert client.isdisjoint(range(place, place + len(piece.text)))
        place += len(piece.text)


def test_tokens_take_white_space_as_the_vocabulary_says() -> None:
    """Phi-3's special tokens take what follows them."""
    tokens = SpecialTokens(
        [SpecialToken("<end>", rstrip=True), SpecialToken("<mask>", lstrip=True), SpecialToken("<x>")]
    )
    text = "a <end> \n b <mask> c<x>"
    forged = text.index("<x>")
    assert tokens.pieces(text, [forged]) == [
        Piece("a ", False),
        Piece("<end>", True),
        Piece("b", False),
        Piece("<mask>", True),
        Piece(" c<x>", False),
    ]
