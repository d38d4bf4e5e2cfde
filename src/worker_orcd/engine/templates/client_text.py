"""Client text that a template can use like any string, and that stays recognizable in the rendered text.

A special token in a rendered conversation is special only if the template wrote it. So the characters of client text
that could be part of a special token are replaced by aliases (characters of a private-use plane) before rendering, and
restored afterwards. An alias in the rendered text marks a client's character, however the template cut, joined or
escaped it. `ClientText` hides the aliases from the template: it compares, searches and splits like the original text.
"""

# ruff: noqa: D102  # Methods do what `str` documents for them.
# ruff: noqa: SLF001  # A client text may access another one's private members.

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Self

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class Aliases:
    """Substitutes for some characters. They are chosen so that they occur in none of `texts`."""

    def __init__(self, characters: Iterable[str], texts: Iterable[str]) -> None:
        """Choose a private-use character for each of `characters`."""
        taken = set[str]().union(*(_PRIVATE.findall(text) for text in texts))
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._alias_of = dict(zip(sorted(characters), free, strict=False))
        self._found = re.compile(f"[{''.join(self._alias_of.values())}]") if self._alias_of else None
        self._text_type = type("ClientText", (ClientText,), {"_aliases": self})

    def hide(self, text: str) -> str:
        """The text with aliases."""
        for character, alias in self._alias_of.items():
            text = text.replace(character, alias)
        return text

    def show(self, text: str) -> str:
        """The text without aliases. It has the same length."""
        text = str.__str__(text)
        for character, alias in self._alias_of.items():
            text = text.replace(alias, character)
        return text

    def places(self, text: str) -> list[int]:
        """Positions of aliases in the text."""
        return [match.start() for match in self._found.finditer(text)] if self._found else []

    def tracked(self, value: Any) -> Any:
        """The value, as `ClientText` if it is a plain string with aliases in it."""
        if type(value) is str and self._found is not None and self._found.search(value):
            return self._text_type(value)
        return value

    def unescape_ascii(self, text: str) -> str:
        """JSON text that was escaped to ASCII, with its aliases unescaped."""
        for alias in self._alias_of.values():
            high, low = divmod(ord(alias) - 0x10000, 0x400)
            text = text.replace(f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}", alias)
        return text

    def track_all(self, value: Any) -> Any:
        """A JSON value in which all strings, keys included, are client text."""
        if isinstance(value, str):
            return self.tracked(self.hide(value))
        if isinstance(value, dict):
            return {self.track_all(key): self.track_all(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.track_all(item) for item in value]
        return value


_PRIVATE = re.compile(f"[{chr(_PRIVATE_USE[0])}-{chr(_PRIVATE_USE[-1])}]")


class ClientText(str):
    """A `str` with aliases that behaves like the original text. Each set of aliases has a subclass."""

    _aliases: ClassVar[Aliases]

    @property
    def _original(self) -> str:
        known: str | None = self.__dict__.get("_known")
        if known is None:
            known = self.__dict__["_known"] = self._aliases.show(self)
        return known

    def _part(self, start: int, length: int) -> Self:
        return type(self)(str.__getitem__(self, slice(start, start + length)))

    def _parts(self, originals: Iterable[str], gap: int) -> list[Self]:
        """These parts of the original text, `gap` characters apart."""
        found, place = [], 0
        for original in originals:
            found.append(self._part(place, len(original)))
            place += len(original) + gap
        return found

    def _words(self, originals: Iterable[str]) -> list[Self]:
        """These parts of the original text, separated by white space."""
        found, place = [], 0
        for original in originals:
            place = self._original.index(original, place)
            found.append(self._part(place, len(original)))
            place += len(original)
        return found

    def _split(self, originals: list[str], sep: str | None) -> list[Self]:
        return self._words(originals) if sep is None else self._parts(originals, len(sep))

    def _strip(self, chars: str | None, *, left: bool, right: bool) -> Self:
        text, removed = self._original, _original(chars)
        start = len(text) - len(text.lstrip(removed)) if left else 0
        end = len(text.rstrip(removed)) if right else len(text)
        return self._part(start, max(0, end - start))

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[Any]:  # type: ignore[override]
        return self._split(self._original.split(_original(sep), maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[Any]:  # type: ignore[override]
        return self._split(self._original.rsplit(_original(sep), maxsplit), sep)

    def partition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, mark, after = self._parts(self._original.partition(_original(sep)), 0)
        return before, mark, after

    def rpartition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, mark, after = self._parts(self._original.rpartition(_original(sep)), 0)
        return before, mark, after

    def splitlines(self, keepends: bool = False) -> list[Any]:
        whole = self._parts(self._original.splitlines(True), 0)
        lines = self._original.splitlines(keepends)
        return [line._part(0, len(original)) for line, original in zip(whole, lines, strict=True)]

    def strip(self, chars: str | None = None, /) -> Self:
        return self._strip(chars, left=True, right=True)

    def lstrip(self, chars: str | None = None, /) -> Self:
        return self._strip(chars, left=True, right=False)

    def rstrip(self, chars: str | None = None, /) -> Self:
        return self._strip(chars, left=False, right=True)

    def replace(self, old: str, new: str, count: int = -1) -> Self:  # type: ignore[override]
        if not old:
            return type(self)(str.replace(self, old, new, count))
        parts = self._parts(self._original.split(_original(old), count), len(old))
        return type(self)(str.join(new, parts))

    def removeprefix(self, prefix: str, /) -> Self:
        start = len(prefix) if self._original.startswith(_original(prefix)) else 0
        return self._part(start, len(self))

    def removesuffix(self, suffix: str, /) -> Self:
        found = self._original.endswith(_original(suffix))
        return self._part(0, len(self) - len(suffix) if found else len(self))

    def __iter__(self) -> Iterator[Any]:
        return map(type(self), str.__iter__(self))

    def __radd__(self, other: str) -> Self:
        return type(self)(str.__add__(other, self))

    def __rmod__(self, form: str) -> Self:
        return type(self)(str.__mod__(form, self))

    def __str__(self) -> Self:
        """Returns itself: filters call `str` on their input, which must not lose the type."""
        return self

    def __repr__(self) -> str:
        return self._aliases.hide(repr(self._original))


def _original(value: Any) -> Any:
    """A value in which client text is without its aliases."""
    if isinstance(value, ClientText):
        return value._original
    return tuple(map(_original, value)) if isinstance(value, tuple) else value


def _asking(name: str) -> Callable[..., Any]:
    """A method that calls the original text's method."""
    method = getattr(str, name)
    return lambda self, *args: method(self._original, *map(_original, args))


def _keeping(name: str) -> Callable[..., Any]:
    """A method whose result is client text, too."""
    method = getattr(str, name)

    def keep(self: ClientText, *args: Any) -> Any:
        result = method(self, *args)
        return result if result is NotImplemented else type(self)(result)

    return keep


for _name in (
    *("__contains__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
    *("count", "find", "index", "rfind", "rindex", "startswith", "endswith", "isalnum", "isalpha", "isascii"),
    *(
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
    ),
):
    setattr(ClientText, _name, _asking(_name))
for _name in (
    *(
        "__getitem__",
        "__add__",
        "__mul__",
        "__rmul__",
        "__mod__",
        "capitalize",
        "casefold",
        "center",
        "expandtabs",
    ),
    *("join", "ljust", "lower", "rjust", "swapcase", "title", "upper", "zfill"),
):
    setattr(ClientText, _name, _keeping(_name))
