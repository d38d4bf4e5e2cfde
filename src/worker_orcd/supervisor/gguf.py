"""A reader of the GGUF file format, as far as the start-up check needs it. It never reads past the end of the file.

The format follows llama.cpp's gguf.cpp: little-endian, versions 2 and 3, which do not differ in the parts read here.
The `gguf` package cannot be used: its reader maps the file, and importing it takes half a second. A unit test compares
the tensor types with those of the package.
"""

import os
import struct

from worker_orcd.printable import printable

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
TENSOR_NAME_MAX_BYTES = 63
TENSOR_DIMENSIONS_MAX = 4
TEXT_MAX_BYTES = 256
"""The most bytes kept of a string."""
WINDOW_BYTES = 1 << 16
"""The most bytes of one read."""

STRING, ARRAY = 8, 9
_FORMATS = zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
SCALARS = {number: struct.Struct(f"<{form}") for number, form in _FORMATS}
"""Value types of fixed size."""

# fmt: off
TENSOR_SIZES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}
# fmt: on
"""Tensor type → elements and bytes of a block, to check that a file is complete before an engine is started. For other
types only the beginning of the data is checked; llama.cpp checks the end."""

Value = int | float | str | None


class Malformed(Exception):
    """The file is not well-formed GGUF. The message says where and why."""


class Reader:
    """Reads forward in a file, never past its end, and only a bounded number of items.

    A length must fit into the file, and `items_max` bounds the total work, so a crafted file costs neither memory nor
    much time. The file is read, not mapped, because truncating a mapped file kills the reader with SIGBUS. Every method
    raises `Malformed`, and `OSError` if the disk fails; `what` names the item being read in the message.
    """

    def __init__(self, descriptor: int, items_max: int = 4_000_000) -> None:
        self._descriptor = descriptor
        self._items_left = items_max
        self._window = b""
        self._window_begin = 0
        self.size = os.fstat(descriptor).st_size
        self.position = 0

    def skip(self, count: int, what: str) -> int:
        """Skip `count` bytes. Returns the position before."""
        begin = self.position
        if count > self.size - begin:
            raise Malformed(
                f"truncated in {what}: required {begin + count:,} bytes or more, the file has {self.size:,}"
            )
        self.position = begin + count
        return begin

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return int(self._scalar(4, what))

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int(self._scalar(10, what))

    def text(self, what: str) -> str:
        """A string, printable, of which at most `TEXT_MAX_BYTES` are kept."""
        length = self.u64(what)
        begin = self.skip(length, what)
        kept = self._read(begin, min(length, TEXT_MAX_BYTES)).decode("utf-8", "replace")
        return printable(kept)[:TEXT_MAX_BYTES]

    def peek(self, count: int) -> bytes:
        """The next bytes, fewer at the end of the file. Does not change the position."""
        return self._read(self.position, min(count, self.size - self.position))

    def value(self, value_type: int, what: str) -> Value:
        """A metadata value of any type. Arrays are skipped, and are None."""
        if value_type == STRING:
            return self.text(what)
        if value_type != ARRAY:
            return self._scalar(value_type, what)
        item_type = self.u32(what)
        count = self.u64(what)
        if item_type == STRING:
            self._skip_strings(count, what)
        else:
            # As in llama.cpp, arrays of arrays are not supported.
            self.skip(count * _form(item_type, what).size, what)
        return None

    def _scalar(self, value_type: int, what: str) -> int | float:
        form = _form(value_type, what)
        begin = self.skip(form.size, what)
        number: int | float = form.unpack(self._read(begin, form.size))[0]
        return number

    def _read(self, begin: int, count: int) -> bytes:
        """At most `WINDOW_BYTES`, all within the size that the file had when it was opened."""
        offset = begin - self._window_begin
        if not 0 <= offset <= len(self._window) - count:
            self._window = os.pread(self._descriptor, WINDOW_BYTES, begin)
            self._window_begin, offset = begin, 0
            if len(self._window) < count:
                raise Malformed(f"became shorter than its {self.size:,} bytes while it was read")
        return self._window[offset : offset + count]

    def _skip_strings(self, count: int, what: str) -> None:
        # Each string has at least its length field, so an impossible count is found without reading all strings.
        if count * 8 > self.size - self.position:
            self.skip(count * 8, what)
        self._items_left -= count
        if self._items_left < 0:
            raise Malformed(f"{what} has more items than any model: {count:,}")
        position, last_begin, length_at = self.position, self.size - 8, SCALARS[10].unpack_from
        window, begin, last_offset = b"", position, -1
        for _ in range(count):
            if position > last_begin:
                break
            offset = position - begin
            if offset > last_offset:
                self._read(position, 8)
                window, begin = self._window, self._window_begin
                offset, last_offset = position - begin, len(window) - 8
            position += 8 + length_at(window, offset)[0]
        else:
            if position <= self.size:
                self.position = position
                return
        raise Malformed(f"truncated in {what}: a string ends past the file's {self.size:,} bytes")


def _form(value_type: int, what: str) -> struct.Struct:
    form = SCALARS.get(value_type)
    if form is None:
        raise Malformed(f"{what} has the unknown value type {value_type}")
    return form
