"""What pyproject.toml says of packages on whose private parts the worker depends."""

import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_uvicorn_is_bound_to_one_minor_version() -> None:
    """Its private parts are used (api/connection.py, api/server.py); a release may change them."""
    given = map(Requirement, tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    [uvicorn] = [requirement for requirement in given if requirement.name == "uvicorn"]
    major, minor, *_ = version("uvicorn").split(".")
    assert uvicorn.specifier.contains(f"{major}.{minor}.999")
    assert not uvicorn.specifier.contains(f"{major}.{int(minor) + 1}.0")
