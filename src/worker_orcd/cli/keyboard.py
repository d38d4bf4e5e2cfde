"""Reads a terminal's keys one by one, and restores the terminal afterwards."""

import os
import re
import termios
import tty
from typing import Self

_KEY = re.compile(rb"\x1b[\[O](?P<arrow>[A-D])|\x1b[\[O][0-9;]*[~A-Za-z]|(?P<plain>[\x20-\x7e])|.", re.DOTALL)
_ARROWS = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
_AT_ONCE = 64


class Keyboard:
    """A context in which keys arrive without Enter and without echo. Exiting it always restores the terminal.

    Ctrl-C and Ctrl-Z still send signals.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self.fd)
        tty.setcbreak(self.fd, termios.TCSANOW)
        return self

    def __exit__(self, *_: object) -> None:
        # TCSANOW: otherwise output that is paused with Ctrl-S would block here.
        termios.tcsetattr(self.fd, termios.TCSANOW, self._before)

    def keys(self) -> list[str]:
        """Wait for keys, and return the pressed ones: characters, or `up`, `down`, `left`, `right`.

        Raises:
            EOFError: the terminal is closed.
        """
        try:
            pressed = os.read(self.fd, _AT_ONCE)
        except OSError as error:
            raise EOFError from error
        if not pressed:
            raise EOFError
        return named(pressed)


def named(pressed: bytes) -> list[str]:
    """The names of the keys in a terminal's input. Keys that no command uses are dropped."""
    keys = []
    for key in _KEY.finditer(pressed):
        if key["arrow"]:
            keys.append(_ARROWS[key["arrow"]])
        elif key["plain"]:
            keys.append(key["plain"].decode())
    return keys
