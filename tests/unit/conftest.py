"""Fixtures that several unit tests share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import HandLoop, MakeLoop


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Make loops; they are closed afterwards."""
    made: list[HandLoop] = []

    def make(**given: Any) -> HandLoop:
        made.append(HandLoop(**given))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


@pytest.fixture
def loop(make_loop: MakeLoop) -> HandLoop:
    """A loop with four sequences."""
    return make_loop()
