"""API keys: who may use the worker, and the owner's name for their jobs (G9)."""

import hashlib
import hmac
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from worker_orcd.settings import flag

_KEY = re.compile(r"[\x21-\x7e]{16,256}")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class KeyFileError(ValueError):
    """The file has no usable keys. The message is one line and never contains a key."""


class Caller(NamedTuple):
    """The holder of a request's key."""

    owner: str
    """The holder's name inside the worker: a part of the key's hash."""
    operator: bool


class ApiKeys:
    """The keys of tenants and of operators, each in a separate file.

    A file has one key per line and ends with a line feed. Blank lines and lines that begin with `#` are ignored.
    """

    def __init__(self, tenants: Path | None, operators: Path | None = None) -> None:
        """Read both files.

        Raises:
            KeyFileError: a file cannot be read, has no key, has an invalid line, or can be written by others; or a key
                is in both files.
        """
        self._paths = (tenants, operators)
        self._tenants, self._operators = _read_both(tenants, operators)

    def __len__(self) -> int:
        return len(self._tenants.digests) + len(self._operators.digests)

    @property
    def open_files(self) -> list[Path]:
        """The key files that every user of this machine can read."""
        return [file.path for file in (self._tenants, self._operators) if file.path and file.open_to_all]

    def reload(self) -> None:
        """Read both files again. If one is unusable, all keys stay unchanged.

        Raises:
            KeyFileError: as in `__init__`.
        """
        self._tenants, self._operators = _read_both(*self._paths)

    def caller(self, key: str) -> Caller | None:
        """The holder of a key; None for an unknown key.

        All keys are compared, each in constant time, so the response time reveals nothing about them.
        """
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found: Caller | None = None
        for file, operator in ((self._tenants, False), (self._operators, True)):
            for digest in file.digests:
                if hmac.compare_digest(digest, given):
                    found = Caller(digest.hex()[:16], operator)
        return found


class _KeyFile(NamedTuple):
    path: Path | None = None
    digests: tuple[bytes, ...] = ()
    open_to_all: bool = False


def _read_both(tenants: Path | None, operators: Path | None) -> tuple[_KeyFile, _KeyFile]:
    of_tenants = _KeyFile() if tenants is None else _read(tenants, flag("api_key_file"))
    of_operators = _KeyFile() if operators is None else _read(operators, flag("operator_key_file"))
    if not set(of_tenants.digests).isdisjoint(of_operators.digests):
        raise KeyFileError(
            f"{flag('operator_key_file')} {operators}: has a key that is also in {flag('api_key_file')}; "
            "its holder would be both a tenant and an operator"
        )
    return of_tenants, of_operators


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting, as a named pipe would for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: Path, option: str) -> _KeyFile:
    try:
        with open(path, "rb", opener=_at_once) as file:  # `Path.open` takes no opener.
            mode = os.fstat(
                file.fileno()
            ).st_mode  # Of the file that is read, even if the path now names another one.
            if not stat.S_ISREG(mode):
                raise KeyFileError(f"{option} {path}: required a text file, but it is not a regular file")
            text = file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KeyFileError(f"{option} {path}: required a readable text file, but {why}") from error
    if mode & _OTHERS_WRITE:
        raise KeyFileError(
            f"{option} {path}: required a file that only its owner can write, but its mode is "
            f"{stat.S_IMODE(mode):04o}; use chmod go-w"
        )
    if text and not text.endswith("\n"):
        raise KeyFileError(
            f"{option} {path}: required a line feed at the end; without it the file may be half-written, "
            "and a truncated key would be accepted"
        )
    return _KeyFile(path, _digests(text, f"{option} {path}"), bool(mode & stat.S_IROTH))


def _digests(text: str, named: str) -> tuple[bytes, ...]:
    keys = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [(number, key) for number, key in keys if key and not key.startswith("#")]
    for number, key in keys:
        if not _KEY.fullmatch(key):
            raise KeyFileError(
                f"{named}: line {number} is not a key: required 16 to 256 visible ASCII characters, "
                f"found {len(key)} characters"
            )
    if not keys:
        raise KeyFileError(f"{named}: required at least one key, found none")
    return tuple(dict.fromkeys(hashlib.sha256(key.encode()).digest() for _, key in keys))
