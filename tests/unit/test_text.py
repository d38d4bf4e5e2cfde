"""From token bytes to text: whole characters only, and never a part of a stop sequence (contract, 2)."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings, strategies as st

from tests.lanes import examples
from worker_orcd.engine.text import TextAssembler

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def assembled(pieces: list[bytes], *stops: str) -> list[str]:
    """What is shown for each piece, and at the end."""
    assembler = TextAssembler(stops)
    shown = [assembler.feed(piece) for piece in pieces]
    return [*shown, assembler.finish()]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Bytes cut into pieces at these places, some of which may be empty."""
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


def reference(pieces: list[bytes], stops: list[str]) -> str:
    """What a reader should see, found the simple way: search the whole text after each token."""
    so_far = b""
    for piece in pieces:
        so_far += piece
        text = so_far.decode("utf-8", "ignore")
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)]
    return so_far.decode("utf-8", "ignore")


# Characters.


def test_a_character_split_over_tokens_is_held_back_until_it_is_whole() -> None:
    """Tokens before it bring no text; the one that completes it brings it."""
    assert assembled([b"\xf0\x9f", b"\x91", b"\x8b!"]) == ["", "", "👋!", ""]


def test_text_before_an_incomplete_character_is_not_held() -> None:
    """Only the incomplete character is held back."""
    assert assembled([b"Hi \xe6\xbc", b"\xa2"]) == ["Hi ", "漢", ""]


def test_a_character_that_never_becomes_whole_is_dropped_at_the_end() -> None:
    """The model stopped in the middle of a character; no U+FFFD appears that it did not write."""
    assert "".join(assembled([b"Hi", b"\xf0\x9f\x91"])) == "Hi"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xffb", "ab"),
        (b"a\x80b", "ab"),
        (b"a\xc0\xafb", "ab"),
        (b"a\xed\xa0\x80b", "ab"),
        (b"a\xf0\x28b", "a(b"),
        (b"\xe6\xbcA", "A"),
        (b"\xf5\x80\x80\x80", ""),
    ],
)
def test_bytes_that_can_never_become_a_character_are_dropped(data: bytes, text: str) -> None:
    """Whole or one by one; the good bytes around them stay."""
    assert "".join(assembled([data])) == text
    assert "".join(assembled([bytes([byte]) for byte in data])) == text


def test_a_replacement_character_that_the_model_wrote_is_shown() -> None:
    """It is a character like any other."""
    assert "".join(assembled([b"\xef\xbf", b"\xbd"])) == REPLACEMENT


@given(st.text(), st.lists(st.integers(0, 10_000)))
@example("👩‍👩‍👧‍👦 漢字 é e\u0301 " + REPLACEMENT, list(range(64)))
@settings(deadline=None)
def test_any_text_cut_into_any_pieces_comes_out_as_it_was(text: str, places: list[int]) -> None:
    """The pieces are concatenated to the text, each of them valid UTF-8, nothing is held at the end."""
    text = text.encode("utf-8", "ignore").decode()
    shown = assembled(cut(text.encode(), places))
    assert "".join(shown) == text
    assert shown[-1] == ""
    assert all(piece.encode("utf-8").decode("utf-8") == piece for piece in shown)


@given(st.binary(), st.lists(st.integers(0, 10_000)))
@settings(deadline=None)
def test_any_bytes_whatever_give_valid_text_and_no_replacement_character(
    data: bytes, places: list[int]
) -> None:
    """The text is that of all bytes at once, without the invalid ones."""
    shown = assembled(cut(data, places))
    assert "".join(shown) == data.decode("utf-8", "ignore")
    assert all(piece.encode("utf-8").decode("utf-8") == piece for piece in shown)
    assert "".join(shown).count(REPLACEMENT) == data.decode("utf-8", "ignore").count(REPLACEMENT)


@given(st.text(), st.lists(st.integers(0, 10_000)))
@settings(deadline=None)
def test_never_more_than_an_unfinished_character_is_held(text: str, places: list[int]) -> None:
    """Without stop sequences every whole character is shown with the token that completes it."""
    pieces = cut(text.encode("utf-8", "ignore"), places)
    assembler, shown, fed = TextAssembler(), "", b""
    for piece in pieces:
        shown += assembler.feed(piece)
        fed += piece
        assert shown == fed.decode("utf-8", "ignore")


# Stop sequences.


def test_a_stop_sequence_ends_the_text_before_it() -> None:
    """It and what follows it is never shown, also not when more is fed."""
    assembler = TextAssembler(("END",))
    assert assembler.feed(b"one END two") == "one "
    assert assembler.stopped
    assert assembler.feed(b"three") == ""
    assert assembler.finish() == ""


def test_a_stop_sequence_over_token_borders_is_found() -> None:
    """Its parts are held back until it is decided."""
    assert assembled([b"oneE", b"N", b"D", b"x"], "END") == ["one", "", "", "", ""]


def test_what_only_began_like_a_stop_sequence_is_shown_once_that_is_decided() -> None:
    """The text is shown with the token that decides it."""
    assert assembled([b"E", b"N", b"T"], "END") == ["", "", "ENT", ""]


def test_held_text_is_released_at_the_end() -> None:
    """Nothing can follow any more, so it was no stop sequence."""
    assert assembled([b"the EN"], "END") == ["the ", "EN"]


def test_a_stop_sequence_in_the_middle_of_a_failed_one_is_found() -> None:
    """`aab` in `aaab`: the first `a` is text, the rest is the sequence."""
    assert assembled([b"a", b"a", b"a", b"b"], "aab") == ["", "", "a", "", ""]


def test_the_earliest_of_overlapping_stop_sequences_counts() -> None:
    """When one token completes several, nothing of any is shown."""
    assert assembled([b"xabcd"], "bcd", "abc", "d")[0] == "x"
    assert assembled([b"xa", b"b", b"c"], "bcd", "abc") == ["x", "", "", ""]


def test_a_stop_sequence_that_begins_another_ends_the_text_first() -> None:
    """The longer one can't come any more."""
    assert assembled([b"x", b"a", b"b"], "ab", "a") == ["x", "", "", ""]


def test_a_stop_sequence_of_many_byte_characters_over_borders_within_one() -> None:
    """Characters first, then sequences."""
    assert assembled([b"x\xf0\x9f", b"\x91\x8b", b"\xe6\xbc\xa2"], "👋漢") == ["x", "", "", ""]


def test_a_newline_pair_is_the_usual_one() -> None:
    """A single newline is shown once its successor is known."""
    assert assembled([b"a\n", b"b\n", b"\nc"], "\n\n") == ["a", "\nb", "", ""]


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=30),
)
@example(text="aaab", stops=["aab"], places=[1, 2, 3])
@example(text="abcabcabd", stops=["abcabd", "ca"], places=list(range(9)))
@settings(deadline=None, max_examples=examples(200))
def test_the_output_is_the_text_before_the_earliest_stop_sequence(
    text: str, stops: list[str], places: list[int]
) -> None:
    """As found in the whole text after each token."""
    pieces = cut(text.encode(), places)
    shown = "".join(assembled(pieces, *stops))
    assert shown == reference(pieces, stops)
    assert not any(stop in shown for stop in stops)


@given(
    text=st.text("ab漢👋", max_size=20),
    stops=st.lists(st.text("ab漢👋", min_size=1, max_size=4), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=20),
)
@settings(deadline=None, max_examples=examples(100))
def test_no_part_of_a_stop_sequence_is_ever_shown(text: str, stops: list[str], places: list[int]) -> None:
    """What is shown is always a prefix of the final text, so nothing has to be taken back."""
    pieces = cut(text.encode(), places)
    whole = reference(pieces, stops)
    assembler, shown = TextAssembler(tuple(stops)), ""
    for piece in pieces:
        shown += assembler.feed(piece)
        assert whole.startswith(shown)
    assert shown + assembler.finish() == whole


@given(
    text=st.text("abc", max_size=30),
    stop=st.text("abc", min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=30),
    others=st.lists(st.integers(0, 1000), max_size=30),
)
@settings(deadline=None)
def test_with_one_stop_sequence_token_borders_do_not_matter(
    text: str, stop: str, places: list[int], others: list[int]
) -> None:
    """The same text is shown however the model cuts it into tokens, and it stops for the same text."""
    assert "".join(assembled(cut(text.encode(), places), stop)) == text.partition(stop)[0]
    assert "".join(assembled(cut(text.encode(), others), stop)) == text.partition(stop)[0]


# Indentation.


def indented(pieces: list[bytes], n_indent: int, *stops: str) -> tuple[str, bool]:
    """The text that is shown, and whether it was cut."""
    assembler = TextAssembler(stops, n_indent)
    text = "".join(map(assembler.feed, pieces)) + assembler.finish()
    return text, assembler.cut


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a = 1", "a = 1"),
        ("a\n  b\n   c\n", "a\n  b\n   c\n"),
        ("a\n  b\n c", "a\n  b\n "),
        ("a\nb", "a\n"),
        ("a\n\t\tb\n\tc", "a\n\t\tb\n\t"),
        ("a\n\n  b", "a\n"),
        ("a\n  \n  b\n", "a\n  \n  b\n"),
        ("\n ", "\n "),
    ],
)
def test_a_line_with_too_little_indentation_ends_the_text(text: str, kept: str) -> None:
    """As llama-server's `n_indent`: the first line may begin anywhere, an empty line has no indentation, and what was
    generated of the line's own indentation stays."""
    for pieces in ([text.encode()], [byte.encode() for byte in text]):
        assert indented(pieces, 2) == (kept, kept != text)
        assert indented(pieces, 0) == (text, False)


def test_text_that_is_held_back_is_cut_too() -> None:
    """Whatever it was held back for."""
    assembler = TextAssembler(("\nEND",), 2)
    assert [assembler.feed(piece) for piece in (b"a", b"\nE", b"N")] == ["a", "", ""]
    assert assembler.held == "\n"
    assert (assembler.finish(), assembler.cut) == ("\n", True)
    assert indented([b"a\nb", b" END"], 2, "END") == ("a\n", True)
