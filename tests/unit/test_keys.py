"""The key file: which lines are keys, and who owns each key."""

import os
from pathlib import Path

import pytest

from worker_orcd.api.keys import ApiKeys, KeyFileError

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def keys(tmp_path: Path, text: str) -> ApiKeys:
    """A file with this text."""
    return ApiKeys(written(tmp_path / "keys.txt", text))


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    """A file with this text and this mode."""
    path.write_text(text)
    path.chmod(mode)
    return path


def test_each_key_has_its_own_lasting_owner(tmp_path: Path) -> None:
    """The owner is the same after a restart, and reveals nothing of the key."""
    first, again = (
        keys(tmp_path, f"{KEY}\n{OTHER}\n"),
        keys(tmp_path, f"# a comment\n\n  {OTHER}  \n{KEY}\n{KEY}\n"),
    )
    assert (len(first), len(again)) == (2, 2)
    assert first.caller(KEY) == again.caller(KEY) != first.caller(OTHER)
    assert KEY not in str(first.caller(KEY))
    assert first.caller(KEY) not in (None, first.caller(OTHER))
    assert first.caller("") is first.caller(KEY + "0") is first.caller("é\udce9") is None


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "short", "with a space in it", "ü" * 20, "x" * 257]
)
def test_a_bad_file_is_refused_in_one_line_without_its_keys(tmp_path: Path, text: str) -> None:
    """The line names the file and the line number, never the content."""
    with pytest.raises(KeyFileError, match="--api-key-file") as refused:
        keys(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, not text, or no file: a named pipe would be waited for."""
    with pytest.raises(KeyFileError, match="No such file"):
        ApiKeys(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(KeyFileError, match="not UTF-8"):
        ApiKeys(tmp_path / "binary")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(KeyFileError, match=r"directory|not a regular file"):
            ApiKeys(other)


def test_a_bad_file_does_not_replace_good_keys(tmp_path: Path) -> None:
    """The earlier keys stay in force."""
    it = keys(tmp_path, f"{KEY}\n")
    (tmp_path / "keys.txt").write_text("short")
    with pytest.raises(KeyFileError):
        it.reload()
    assert it.caller(KEY) is not None
    (tmp_path / "keys.txt").write_text(f"{OTHER}\n")
    it.reload()
    assert (it.caller(KEY), len(it)) == (None, 1)


def test_a_half_written_file_is_refused_and_the_old_keys_stay(tmp_path: Path) -> None:
    """Wherever a key is cut, the shorter key is never accepted."""
    path = tmp_path / "keys.txt"
    path.write_text(f"{KEY}\n")
    read = ApiKeys(path)
    long = "l" * 32
    for cut in range(1, len(long) + 1):
        path.write_text(f"{KEY}\n{long[:cut]}")
        with pytest.raises(KeyFileError, match="line feed"):
            read.reload()
        assert read.caller(long[:cut]) is None
    assert read.caller(KEY) is not None


def test_an_operators_key_is_known_as_one(tmp_path: Path) -> None:
    """By the file that holds it; either file may exist alone."""
    tenants, operators = (
        written(tmp_path / "tenants", f"{KEY}\n"),
        written(tmp_path / "operators", f"{OTHER}\n"),
    )
    both, alone = ApiKeys(tenants, operators), ApiKeys(None, operators)
    for read in (both, alone):
        caller = read.caller(OTHER)
        assert caller is not None
        assert caller.operator
    tenant = both.caller(KEY)
    assert tenant is not None
    assert not tenant.operator
    assert alone.caller(KEY) is None
    assert (len(both), len(alone)) == (2, 1)


def test_a_key_in_both_files_is_refused(tmp_path: Path) -> None:
    """At the start and on a reload: a tenant's key that is copied into the wrong file does not become an
    operator's."""
    tenants, operators = (
        written(tmp_path / "tenants", f"{KEY}\n"),
        written(tmp_path / "operators", f"{KEY}\n"),
    )
    with pytest.raises(KeyFileError, match="both a tenant and an operator") as refused:
        ApiKeys(tenants, operators)
    assert KEY not in str(refused.value)
    written(operators, f"{OTHER}\n")
    read = ApiKeys(tenants, operators)
    written(tenants, f"{KEY}\n{OTHER}\n")
    with pytest.raises(KeyFileError, match="--operator-key-file"):
        read.reload()
    assert (read.caller(OTHER), len(read)) == (ApiKeys(None, operators).caller(OTHER), 2)


@pytest.mark.parametrize("option", ["--api-key-file", "--operator-key-file"])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int, option: str) -> None:
    """At the start and on a reload, in one line that says how to fix it."""
    files = [written(tmp_path / "tenants", f"{KEY}\n"), written(tmp_path / "operators", f"{OTHER}\n")]
    read = ApiKeys(*files)
    files[option == "--operator-key-file"].chmod(mode)
    for attempt in (lambda: ApiKeys(*files), read.reload):
        with pytest.raises(KeyFileError, match=f"{option}.*{mode:04o}.*chmod go-w"):
            attempt()
    assert len(read) == 2


@pytest.mark.parametrize(
    ("mode", "open_to_all"), [(0o600, False), (0o440, False), (0o640, False), (0o644, True)]
)
def test_a_file_that_everybody_can_read_is_known(tmp_path: Path, mode: int, open_to_all: bool) -> None:
    """A group may read it, as with a mounted secret; what all users can read is warned of."""
    path = written(tmp_path / "tenants", f"{KEY}\n", mode)
    read = ApiKeys(path)
    assert read.open_files == ([path] if open_to_all else [])
    path.chmod(0o600)
    read.reload()
    assert read.open_files == []
