"""Lines that the user types while an answer streams."""

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Self

_LONGEST_LINE = 1 << 16


class TypeAhead:
    """Reads lines from the terminal, from when it is entered until it is left or a line was enough.

    The terminal stays as it is: it shows what is typed, and gives it away line by line.
    """

    def __init__(self, on_line: Callable[[bytes], bool]) -> None:
        """`on_line` gets each line, on a thread of its own; b"" is the end of the input. True: that was enough."""
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._left, self._leave = os.pipe()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for `on_line`, if it is at work."""
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
                return  # The terminal is gone.
            enough = self._on_line(line) or not line
