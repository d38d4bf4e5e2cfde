"""The GGUF file format, as far as a start-up check needs it: its type tables, and a reader that can't be led astray.

Facts from llama.cpp's gguf.cpp and gguf-py (constants.py). Little-endian, versions 2 and 3, which differ in nothing
that is read here.
"""

import mmap
import struct

from worker_orcd.printable import printable

MAGIC = b"GGUF"
HEADER_BYTES = 24
DEFAULT_ALIGNMENT = 32
TENSOR_NAME_MAX_BYTES = 63
TENSOR_DIMENSIONS_MAX = 4

UINT32, STRING, ARRAY = 4, 8, 9

INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", UINT32: "<I", 5: "<i", 10: "<Q", 11: "<q"}
"""Value type → struct format, for the value types that are whole numbers."""

NUMBERS = {**INTEGERS, 6: "<f", 12: "<d"}
"""The same for all numbers."""

VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Value type → size in bytes, for the value types of fixed size."""

TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""Tensor type → its name, elements per block, bytes per block."""

FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""`general.file_type` → the name people know the file's quantization by."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Malformed(Exception):
    """The file is not well-formed GGUF; the message says where and how."""


class Reader:
    """Reads forward in a mapped file, never past its end, and only so many items.

    A length in the file is believed only as far as the file could hold it, and `items_max` bounds the work in all:
    a crafted file costs neither memory nor much time. Every method raises `Malformed`; `what` names for its message
    the thing being read.
    """

    def __init__(self, data: mmap.mmap, items_max: int = 4_000_000) -> None:
        self._data = data
        self._items_left = items_max
        self.size = len(data)
        self.position = 0

    def skip(self, count: int, what: str) -> int:
        """Go `count` bytes ahead; returns where they began."""
        begin = self.position
        if count > self.size - begin:
            raise Malformed(
                f"truncated in {what}: required {begin + count:,} bytes or more, the file has {self.size:,}"
            )
        self.position = begin + count
        return begin

    def count_items(self, count: int, what: str) -> None:
        """Take `count` items out of what may be read in all."""
        self._items_left -= count
        if self._items_left < 0:
            raise Malformed(f"{what} has more items than any model: {count:,}")

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        value: int = _U32.unpack_from(self._data, self.skip(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        value: int = _U64.unpack_from(self._data, self.skip(8, what))[0]
        return value

    def text(self, what: str, bytes_max: int) -> str:
        """A string, of which at most `bytes_max` bytes are kept, printable."""
        length = self.u64(what)
        begin = self.skip(length, what)
        kept = self._data[begin : begin + min(length, bytes_max)].decode("utf-8", "replace")
        return printable(kept)[:bytes_max]

    def integer(self, value_type: int, what: str) -> int:
        """A whole number of one of the types in `INTEGERS`."""
        form = INTEGERS[value_type]
        value: int = struct.unpack_from(form, self._data, self.skip(struct.calcsize(form), what))[0]
        return value

    def number(self, value_type: int, what: str) -> float:
        """A number of one of the types in `NUMBERS`. What is no whole number is rounded to six significant digits, as
        many as an F32 holds."""
        form = NUMBERS[value_type]
        value: float = struct.unpack_from(form, self._data, self.skip(struct.calcsize(form), what))[0]
        return value if value_type in INTEGERS else float(f"{value:.6g}")

    def skip_value(self, value_type: int, what: str) -> int:
        """Go past a value of any type without keeping it; returns its number of items (1 unless an array)."""
        if value_type == STRING:
            self._skip_strings(1, what)
            return 1
        if value_type != ARRAY:
            self.skip(_fixed_bytes(value_type, what), what)
            return 1
        item_type = self.u32(what)
        count = self.u64(what)
        if item_type == STRING:
            self._skip_strings(count, what)
        else:
            # An array of arrays ends here too: llama.cpp takes none.
            self.skip(count * _fixed_bytes(item_type, what), what)
        return count

    def _skip_strings(self, count: int, what: str) -> None:
        # Each has at least its length: a count that can't be true is seen before walking.
        if count * 8 > self.size - self.position:
            self.skip(count * 8, what)
        self.count_items(count, what)
        data, position, last_begin, length_at = self._data, self.position, self.size - 8, _U64.unpack_from
        for _ in range(count):
            if position > last_begin:
                break
            position += 8 + length_at(data, position)[0]
        else:
            if position <= self.size:
                self.position = position
                return
        raise Malformed(f"truncated in {what}: a string ends past the file's {self.size:,} bytes")


def _fixed_bytes(value_type: int, what: str) -> int:
    size = VALUE_BYTES.get(value_type)
    if size is None:
        raise Malformed(f"{what} has the unknown value type {value_type}")
    return size
