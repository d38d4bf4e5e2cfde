"""Reads lines that the user types while an answer streams."""

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Self

_LONGEST_LINE = 1 << 16


class TypeAhead:
    """A context in which lines are read from the terminal, until `on_line` returns True.

    The terminal's mode is unchanged: it echoes input and delivers it line by line.
    """

    def __init__(self, on_line: Callable[[bytes], bool]) -> None:
        """`on_line` is called with each line, on a separate thread; b"" is the end of the input. It returns True to
        stop reading."""
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._left, self._leave = os.pipe()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for `on_line`, if it is running."""
        os.close(self._leave)
        self._thread.join()
        os.close(self._left)

    def _read(self) -> None:
        terminal = sys.stdin.fileno()
        enough = False
        while not enough:
            readable, _, _ = select.select([terminal, self._left], [], [])
            if self._left in readable:
                return
            try:
                line = os.read(terminal, _LONGEST_LINE)
            except OSError:
                return  # The terminal is closed.
            enough = self._on_line(line) or not line
