"""The key file: what is a key, and whose it is."""

from pathlib import Path

import pytest

from worker_orcd.api.keys import ApiKeys, KeyFileError

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def keys(tmp_path: Path, text: str) -> ApiKeys:
    """A file with this text."""
    path = tmp_path / "keys.txt"
    path.write_text(text)
    return ApiKeys(path)


def test_each_key_has_its_own_lasting_owner(tmp_path: Path) -> None:
    """The same after a restart, and nothing of the key is in it."""
    first, again = (
        keys(tmp_path, f"{KEY}\n{OTHER}\n"),
        keys(tmp_path, f"# a comment\n\n  {OTHER}  \n{KEY}\n{KEY}\n"),
    )
    assert (len(first), len(again)) == (2, 2)
    assert first.owner_of(KEY) == again.owner_of(KEY) != first.owner_of(OTHER)
    assert KEY not in str(first.owner_of(KEY))
    assert first.owner_of("") is first.owner_of(KEY + "0") is first.owner_of("é\udce9") is None


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "short", "with a space in it", "ü" * 20, "x" * 257]
)
def test_a_bad_file_is_refused_in_one_line_without_its_keys(tmp_path: Path, text: str) -> None:
    """It names the file and the line, never what stands there."""
    with pytest.raises(KeyFileError, match="--api-key-file") as refused:
        keys(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, or not text."""
    with pytest.raises(KeyFileError, match="No such file"):
        ApiKeys(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(KeyFileError, match="not UTF-8"):
        ApiKeys(tmp_path / "binary")


def test_a_bad_file_does_not_replace_good_keys(tmp_path: Path) -> None:
    """They stay in force."""
    it = keys(tmp_path, f"{KEY}\n")
    (tmp_path / "keys.txt").write_text("short")
    with pytest.raises(KeyFileError):
        it.reload()
    assert it.owner_of(KEY) is not None
    (tmp_path / "keys.txt").write_text(f"{OTHER}\n")
    it.reload()
    assert (it.owner_of(KEY), len(it)) == (None, 1)


def test_a_half_written_file_is_refused_and_the_old_keys_stay(tmp_path: Path) -> None:
    """Cut anywhere within a key: the shorter key is never good."""
    path = tmp_path / "keys.txt"
    path.write_text(f"{KEY}\n")
    read = ApiKeys(path)
    long = "l" * 32
    for cut in range(1, len(long) + 1):
        path.write_text(f"{KEY}\n{long[:cut]}")
        with pytest.raises(KeyFileError, match="line feed"):
            read.reload()
        assert read.owner_of(long[:cut]) is None
    assert read.owner_of(KEY) is not None
