"""The names by which clients may ask for the model."""

import pytest

from worker_orcd.worker.model_names import ModelNames


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0"),
        ("/models/big-00001-of-00003.gguf", "big"),
        ("/models/v1.5", "v1.5"),
    ],
)
def test_without_an_alias_the_model_is_called_as_its_file(path: str, name: str) -> None:
    """Without the suffix of a model file, or of the first part of one."""
    names = ModelNames.of(path, (), "A Model With Spaces")
    assert (names.listed, names.preferred) == ((name,), name)
    assert name in names
    assert "A Model With Spaces" in names
    assert "" not in names


def test_aliases_come_first_and_hide_no_other_name() -> None:
    """Clients that use the file's name still work."""
    names = ModelNames.of("/models/a.gguf", ("x", "y")).with_name("In The File")
    assert (names.listed, names.preferred) == (("x", "y"), "x")
    assert all(name in names for name in ("x", "y", "a", "In The File"))
    assert "b" not in names
