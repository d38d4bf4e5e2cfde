"""What pyproject.toml requires of packages whose private parts the worker uses."""

import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_uvicorn_is_bound_to_one_minor_version() -> None:
    """Its private parts are used (api/connection.py, api/server.py); a release may change them."""
    given = map(
        Requirement, tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["worker"]
    )
    [uvicorn] = [requirement for requirement in given if requirement.name == "uvicorn"]
    major, minor, *_ = version("uvicorn").split(".")
    assert uvicorn.specifier.contains(f"{major}.{minor}.999")
    assert not uvicorn.specifier.contains(f"{major}.{int(minor) + 1}.0")


def test_the_client_library_is_two_packages_that_are_not_compiled() -> None:
    """Installing the client library alone installs none of the worker's dependencies, and so does not compile
    llama.cpp."""
    given = map(Requirement, tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    assert {requirement.name for requirement in given} == {"anyio", "httpx2"}
