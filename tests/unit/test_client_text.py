"""Client text behaves as the text it stands for, and its aliases survive what templates do."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.engine.templates.client_text import Aliases

texts = st.text(alphabet="<|a> \n[", max_size=12)
marks = st.text(alphabet="<|a ", min_size=1, max_size=2)
counts = st.integers(-1, 3)
ALIASES = Aliases("<[", ())


def client(text: str) -> Any:
    """The text as a template sees it."""
    return ALIASES.track_all(text)


def show(value: Any) -> Any:
    """A value with the aliases of client text replaced by the original characters."""
    if isinstance(value, str):
        return ALIASES.show(value)
    return type(value)(map(show, value)) if isinstance(value, list | tuple) else value


CALLS: dict[str, Any] = {
    "strip": lambda t, _m, _n: t.strip(),
    "strip chars": lambda t, m, _n: t.strip(m),
    "lstrip": lambda t, m, _n: t.lstrip(m),
    "rstrip": lambda t, m, _n: t.rstrip(m),
    "split": lambda t, m, n: t.split(m, n),
    "rsplit": lambda t, m, n: t.rsplit(m, n),
    "split words": lambda t, _m, n: t.split(None, n),
    "rsplit words": lambda t, _m, n: t.rsplit(None, n),
    "partition": lambda t, m, _n: t.partition(m),
    "rpartition": lambda t, m, _n: t.rpartition(m),
    "splitlines": lambda t, _m, _n: t.splitlines(),
    "splitlines, ends kept": lambda t, _m, _n: t.splitlines(True),
    "replace": lambda t, m, n: t.replace(m, "<new>", n),
    "replace nothing": lambda t, _m, _n: t.replace("", "-"),
    "removeprefix": lambda t, m, _n: t.removeprefix(m),
    "removesuffix": lambda t, m, _n: t.removesuffix(m),
    "startswith": lambda t, m, _n: t.startswith((m, "<|")),
    "find": lambda t, m, _n: (t.find(m), t.rfind(m), t.count(m), t.endswith(m)),
    "in": lambda t, m, _n: m in t,
    "compare": lambda t, m, _n: (t == m, m == t, t != m, t < m, t >= m),
    "a key": lambda t, m, _n: {m: 1}.get(t),
    "slices": lambda t, _m, n: (t[:n], t[n:], t[::-1]),
    "add": lambda t, m, _n: (t + m, m + t, t * 2),
    "characters": lambda t, _m, _n: list(t),
    "case": lambda t, _m, _n: (t.upper(), t.title(), t.capitalize(), t.center(20)),
    "format": lambda t, _m, _n: ("%s" % t, f"{t}", f"{t!s:>20}", f"{t!r}", ",".join([t, t])),  # noqa: UP031
    "kind": lambda t, _m, _n: (t.isspace(), t.isalpha(), t.isupper()),
    "length": lambda t, _m, _n: len(t),
}


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=50)
@given(text=texts, mark=marks, count=counts)
def test_client_text_answers_as_the_text_it_stands_for(call: str, text: str, mark: str, count: int) -> None:
    """To every method that a template may call, whether its argument is client text or the template's."""
    expected = CALLS[call](text, mark, count)
    assert show(CALLS[call](client(text), mark, count)) == expected
    assert show(CALLS[call](client(text), client(mark), count)) == expected


def raw(value: Any) -> str:
    """All text in a value with its aliases, as it reaches what the template writes."""
    if isinstance(value, list | tuple):
        return "".join(map(raw, value))
    return str.__str__(value) if isinstance(value, str) else ""


@pytest.mark.parametrize("call", [name for name in CALLS if name != "replace"])
@settings(max_examples=30)
@given(text=texts, count=counts)
def test_no_method_turns_aliases_back(call: str, text: str, count: int) -> None:
    """A character that could begin a special token is only written by the template itself."""
    assert "<" not in raw(CALLS[call](client(text), "a", count))


def test_aliases_are_characters_that_occur_nowhere() -> None:
    """Otherwise a client could write them."""
    texts = ["\U000f0000 <", "\U000f0001"]
    aliases = Aliases("<", texts)
    hidden = aliases.hide(texts[0])
    assert aliases.places(hidden) == [2]
    assert aliases.show(hidden) == texts[0]
