"""Untrusted text: whatever it contains, a terminal only displays it."""

import json

import msgspec
from hypothesis import given, strategies as st

from worker_orcd.engine import process
from worker_orcd.printable import printable, printable_values, readable
from worker_orcd.protocol.messages import Ready

EVIL = "a\x1b]0;owned\x07\x9b2J\u202e\u2028\r\nb\x7f"
ANYTHING = st.text(st.characters())
"""Surrogates included, which JSON may bring."""


@given(ANYTHING)
def test_a_name_is_one_line_of_what_can_be_printed(text: str) -> None:
    """For any text; a text that is printable already stays unchanged."""
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert printable(shown) == shown


def test_what_is_escaped_can_still_be_read() -> None:
    """An operator can tell what the text was."""
    assert printable(EVIL) == r"a\x1b]0;owned\x07\x9b2J\u202e\u2028\r\nb\x7f"
    assert printable("Grüße 👋") == "Grüße 👋"


def test_all_texts_of_a_value_are_made_printable() -> None:
    """Names of fields, and what is in lists, included."""
    cleaned = printable_values({EVIL: [EVIL, 1, None, {"b": EVIL}]})
    assert EVIL not in json.dumps(cleaned, ensure_ascii=False)
    assert cleaned == {printable(EVIL): [printable(EVIL), 1, None, {"b": printable(EVIL)}]}


@given(ANYTHING)
def test_an_output_keeps_its_lines_and_loses_what_acts(text: str) -> None:
    """Newlines and tabs stay; control characters, direction overrides and surrogates do not."""
    shown = readable(text)
    shown.encode()
    assert not [c for c in shown if ord(c) < 32 and c not in "\n\t"]
    assert not [
        c for c in shown if 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) < 0x202F or 0x2066 <= ord(c) < 0x206A
    ]
    assert shown.count("\n") == text.count("\n")


def test_an_output_is_otherwise_as_it_is() -> None:
    """Joined emoji and right-to-left scripts keep all characters that they need."""
    text = "Grüße\t👩\u200d💻\n\u05e9\u05dc\u200f"
    assert readable(text) == text
    assert readable("one\r\ntwo\rthree") == "one\ntwo\ufffdthree"


def test_the_names_of_a_model_are_printable_when_it_is_loaded() -> None:
    """So they are in health, `/v1/models`, metrics and logs. The file and the device's driver chose them."""
    plain = Ready("m", "cpu", True, 0, "Q4", "bpe", 1, 1, 1, 1, False, 0.0)
    facts = msgspec.structs.replace(plain, model=EVIL, device=EVIL, quant_kind=EVIL, tokenizer_kind=EVIL)
    cleaned = process._printable(facts)
    assert [value for value in msgspec.structs.astuple(cleaned) if value == EVIL] == []
    assert cleaned.model == printable(EVIL)
