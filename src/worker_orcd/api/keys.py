"""API keys: who may use the worker, and under which name their jobs are kept (G9)."""

import hashlib
import hmac
import re
from pathlib import Path

_KEY = re.compile(r"[\x21-\x7e]{16,256}")


class KeyFileError(ValueError):
    """The file has no usable keys. The message is one clear line and never holds a key."""


class ApiKeys:
    """The keys of a file, one on each line; blank lines and lines that begin with `#` are left out.

    The file ends with a line feed.
    """

    def __init__(self, path: Path) -> None:
        """Read them.

        Raises:
            KeyFileError: it cannot be read, has no key, or has a line that is none.
        """
        self._path = path
        self._digests = _read(path)

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> None:
        """Read the file again; when it is bad, the keys stay as they are.

        Raises:
            KeyFileError: as at first.
        """
        self._digests = _read(self._path)

    def owner_of(self, key: str) -> str | None:
        """The owner's name: a part of the key's hash. None for a key that is not in the file.

        All keys are compared, each in constant time, so an answer's time tells nothing about any of them.
        """
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found: bytes | None = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = digest
        return None if found is None else found.hex()[:16]


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KeyFileError(f"--api-key-file {path}: required a readable text file, but {why}") from error
    if text and not text.endswith("\n"):
        raise KeyFileError(
            f"--api-key-file {path}: required a line feed at its end; without one it may be half-written, "
            "and a cut key would be good"
        )
    keys = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [(number, key) for number, key in keys if key and not key.startswith("#")]
    for number, key in keys:
        if not _KEY.fullmatch(key):
            raise KeyFileError(
                f"--api-key-file {path}: line {number} is no key: required 16 to 256 visible ASCII characters, "
                f"found {len(key)} characters"
            )
    if not keys:
        raise KeyFileError(f"--api-key-file {path}: required at least one key, found none")
    return tuple(dict.fromkeys(hashlib.sha256(key.encode()).digest() for _, key in keys))
