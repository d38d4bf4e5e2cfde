"""Take a GGUF file apart, change it at random, and put it together again."""

import random
import struct
from dataclasses import dataclass
from pathlib import Path

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
LIES = (
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    63,
    64,
    255,
    256,
    4096,
    65535,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)
"""Numbers for counts, lengths, dimensions, offsets and ids."""
TEXTS = (b"", b"\0", b"\xff\xfe", b"\x1b[31m", b"llama", b"bert", b"none", b"a" * 70, b"b" * 10_000)


@dataclass
class Gguf:
    """A file in pieces. Keys and values are raw; a value begins with its type."""

    head: bytes
    keys: list[tuple[bytes, bytes]]
    tensors: list[tuple[bytes, list[int], int, int]]
    """Name, dimensions, type and offset."""
    data: bytes
    alignment: int = 32

    @classmethod
    def read(cls, path: Path) -> "Gguf":
        """Take a well-formed file apart."""
        raw = path.read_bytes()
        _, tensor_count, key_count = struct.unpack_from("<IQQ", raw, 4)
        at, keys = 24, []
        for _ in range(key_count):
            key, at = _string(raw, at)
            end = _value_end(raw, at)
            keys.append((key, raw[at:end]))
            at = end
        tensors = []
        for _ in range(tensor_count):
            name, at = _string(raw, at)
            (count,) = struct.unpack_from("<I", raw, at)
            dimensions = list(struct.unpack_from(f"<{count}Q", raw, at + 4))
            kind, offset = struct.unpack_from("<IQ", raw, at + 4 + 8 * count)
            at += 4 + 8 * count + 12
            tensors.append((name, dimensions, kind, offset))
        return cls(raw[:8], keys, tensors, raw[-(-at // 32) * 32 :])

    def bytes(self, tensor_count: int | None = None, key_count: int | None = None) -> bytes:
        """Put it together."""
        count = len(self.tensors) if tensor_count is None else tensor_count
        keys = len(self.keys) if key_count is None else key_count
        out = bytearray(self.head + struct.pack("<QQ", count, keys))
        for key, value in self.keys:
            out += struct.pack("<Q", len(key)) + key + value
        for name, dimensions, kind, offset in self.tensors:
            shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
            out += struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind, offset)
        return bytes(out) + bytes(-len(out) % self.alignment) + self.data


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", raw, at)
    return raw[at + 8 : at + 8 + length], at + 8 + length


def _value_end(raw: bytes, at: int) -> int:
    kind: int = struct.unpack_from("<I", raw, at)[0]
    at += 4
    if kind == STRING:
        return _string(raw, at)[1]
    if kind != ARRAY:
        return at + SIZES[kind]
    item: int
    count: int
    item, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if item != STRING:
        return at + count * SIZES[item]
    for _ in range(count):
        at = _string(raw, at)[1]
    return at


def mutated(path: Path, chance: random.Random) -> bytes:
    """The file's bytes with one to three lies in them."""
    file = Gguf.read(path)
    counts: dict[str, int] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(_STRUCTURED)(file, chance, counts)
    raw = bytearray(file.bytes(**counts))
    head = len(raw) - len(file.data)
    match chance.randrange(12):
        case 0:
            del raw[chance.randrange(len(raw)) :]
        case 1:
            del raw[chance.randrange(head) :]
        case 2:
            for _ in range(chance.choice((1, 4, 64))):
                raw[chance.randrange(head)] ^= chance.randrange(1, 256)
        case 3:
            at = chance.randrange(head)
            raw[at:at] = chance.randbytes(chance.choice((1, 8, 32)))
        case 4:
            for _ in range(64):
                raw[head + chance.randrange(len(file.data))] = 255
        case _:
            pass
    return bytes(raw)


def _number(value: bytes, chance: random.Random) -> bytes:
    """Another value of the same type; an array gets other numbers, another length, or into another array."""
    (kind,) = struct.unpack_from("<I", value)
    if kind == STRING:
        text = chance.choice(TEXTS)
        return value[:4] + struct.pack("<Q", chance.choice((len(text), *LIES))) + text
    if kind != ARRAY:
        return value[:4] + struct.pack("<Q", chance.choice(LIES))[: SIZES.get(kind, 8)]
    item, count = struct.unpack_from("<IQ", value, 4)
    if chance.random() < 0.3:
        return value[:8] + struct.pack("<Q", chance.choice((max(0, count - 1), *LIES))) + value[16:]
    size = SIZES.get(item, 0)
    held = (len(value) - 16) // size if size else 0
    if not held:
        return value[:4] + struct.pack("<IQ", ARRAY, 1) + value
    out = bytearray(value)
    for _ in range(chance.choice((1, 8))):
        at = 16 + chance.randrange(held) * size
        out[at : at + size] = struct.pack("<Q", chance.choice(LIES))[:size]
    return bytes(out)


def _change_value(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    at = chance.randrange(len(file.keys))
    key, value = file.keys[at]
    file.keys[at] = (key, _number(value, chance))


def _change_token(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    """Cut an array of strings and keep its count right, or replace some of its items."""
    for at, (key, value) in enumerate(file.keys):
        if value[:8] == struct.pack("<II", ARRAY, STRING):
            items, position = [], 16
            while position < len(value):
                item, position = _string(value, position)
                items.append(item)
            items = items[: chance.choice((0, 1, len(items) // 2, len(items)))]
            for _ in range(chance.choice((0, 1, 20)) if items else 0):
                items[chance.randrange(len(items))] = chance.choice(TEXTS)
            body = b"".join(struct.pack("<Q", len(item)) + item for item in items)
            file.keys[at] = (key, value[:8] + struct.pack("<Q", len(items)) + body)
            if chance.random() < 0.5:
                return


def _change_type(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    at = chance.randrange(len(file.keys))
    key, value = file.keys[at]
    file.keys[at] = (key, struct.pack("<I", chance.choice((*range(14), 2**31, 2**32 - 1))) + value[4:])


def _drop_key(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    if len(file.keys) > 1:
        file.keys.pop(chance.randrange(len(file.keys)))


def _double_key(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    key, value = chance.choice(file.keys)
    file.keys.append((key, _number(value, chance)))


def _add_key(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    number = struct.pack("<I", chance.choice((4, 4, 10))) + struct.pack("<Q", chance.choice(LIES))
    key = chance.choice(
        (b"general.alignment", b"split.count", b"split.no", b"", b"x" * 70_000, b"llama.expert_count")
    )
    file.keys.append((key, number[:8] if number[0] == 4 else number))


def _nest(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    depth = chance.choice((1, 2, 5000))
    array = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQI", 4, 1, 0)
    file.keys.append((b"x.nested", struct.pack("<I", ARRAY) + array))


def _change_tensor(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    at = chance.randrange(len(file.tensors))
    name, dimensions, kind, offset = file.tensors[at]
    match chance.randrange(6):
        case 0:
            name = chance.choice((*TEXTS, file.tensors[0][0]))
        case 1 if dimensions:
            dimensions[chance.randrange(len(dimensions))] = chance.choice(LIES)
        case 2:
            dimensions = [chance.choice(LIES) for _ in range(chance.choice((0, 1, 2, 4, 5, 200)))]
        case 3:
            kind = chance.choice((*range(45), 2**31, 2**32 - 1))
        case 4:
            offset = chance.choice((offset + 1, offset + 32, max(0, offset - 32), *LIES))
        case _:
            dimensions = dimensions[::-1]
    file.tensors[at] = (name, dimensions, kind, offset)


def _swap_tensors(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    chance.shuffle(file.tensors)


def _drop_tensor(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    if len(file.tensors) > 1:
        file.tensors.pop(chance.randrange(len(file.tensors)))


def _lie_of_counts(file: Gguf, chance: random.Random, counts: dict[str, int]) -> None:
    counts[chance.choice(("tensor_count", "key_count"))] = chance.choice(LIES)


_STRUCTURED = (
    *(_change_value,) * 6,
    *(_change_tensor,) * 3,
    *(_change_token,) * 3,
    *(_change_type, _drop_key, _double_key, _add_key, _nest, _swap_tensors, _drop_tensor, _lie_of_counts),
)
