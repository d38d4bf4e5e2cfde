"""The memory that the front shares with an engine: a broken engine cannot harm the front through it."""

import os

import pytest

from worker_orcd.protocol.interrupt import InterruptByte


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_an_engine_cannot_cut_the_shared_byte(size: int) -> None:
    """The front would end by SIGBUS when it sets a byte that is gone."""
    interrupt = InterruptByte.create()
    with pytest.raises(PermissionError):
        os.ftruncate(interrupt.fd, size)
    interrupt.set()
    assert interrupt.is_set()
    interrupt.close()
