"""Checks at start-up, before anything is loaded, whether a file is a loadable model.

For each part of a split model, the check reads everything before the tensors' data, and compares the end of the last
tensor with the end of the file. So an incomplete download is refused here, with one clear line. The engine makes the
checks that need llama.cpp: which architectures generate text, and whether the tensors are the right ones.

Requirement: M0-W-1500.
"""

import os
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from worker_orcd.printable import printable
from worker_orcd.supervisor import gguf

VERSIONS = (2, 3)
TENSORS_MAX = 9_999
KEYS_MAX = 65_535
ALIGNMENT_MAX = 1 << 20
NOT_MODELS = {"adapter": "an adapter (LoRA)", "imatrix": "an importance matrix", "mmproj": "a projector"}
"""`general.type` of files that belong to a model but are not models."""
SAMPLING_KEYS = "general.sampling."
"""Prefix of the keys with sampling values that the model's authors recommend."""
NO_VOCABULARY = ("none", "no_vocab")
"""`tokenizer.ggml.model` of models without a vocabulary."""
RERANKS = 4
"""The `pooling_type` of models that return a score instead of an embedding."""
_FIRST_PART = re.compile(r"(?P<prefix>.*)-00001-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class ModelFileError(Exception):
    """The model file cannot be used. The message is one line: the path, what was required, and what was found."""

    code: ClassVar[Literal["MODEL_LOAD_FAILED"]] = "MODEL_LOAD_FAILED"

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The facts in a GGUF file; for a split model, those of all parts together.

    `name` is printable; its default is the file's name. `sampling` has the numbers under `general.sampling`.
    """

    path: Path
    architecture: str
    name: str
    tensor_count: int
    size_bytes: int
    sampling: dict[str, float] = field(default_factory=dict)


def inspect(path: Path, *, encoders: bool = False) -> ModelFile:
    """Read everything before the tensors' data, and check that the data are complete.

    Takes about 0.1 s for a vocabulary of 49,000 tokens, and bounded time and memory for any file. `encoders`: accept a
    model without a causal decoder, for embeddings. Raises `ModelFileError` with the path of the faulty part.
    """
    first = _Part.read(path)
    count = first.number("split.count") or 1
    if count > 1:
        _require_first_part(first, count)
    architecture = _require_generative(first, encoders=encoders)
    parts = [first] if count <= 1 else _all_parts(first, count)
    tensors = sum(part.tensor_count for part in parts)
    expected = first.number("split.tensors.count")
    if count > 1 and expected is not None and expected != tensors:
        first.refuse(f"declares {expected:,} tensors in its {count} parts; they have {tensors:,}")
    if not 1 <= tensors <= TENSORS_MAX:
        first.refuse(f"has {tensors:,} tensors; 1 to {TENSORS_MAX:,} are required")
    return ModelFile(
        path=path,
        architecture=architecture,
        name=first.text("general.name") or printable(path.stem),
        tensor_count=tensors,
        size_bytes=sum(part.size_bytes for part in parts),
        sampling=_sampling(first),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One file: the whole model or a part of it. `metadata` has all values except arrays."""

    path: Path
    metadata: dict[str, gguf.Value]
    tensor_count: int
    size_bytes: int

    @classmethod
    def read(cls, path: Path) -> "_Part":
        """Read and check one file. Raises `ModelFileError`."""
        try:
            str(path).encode()
        except UnicodeEncodeError:
            _refuse(path, "has a path that is not UTF-8; one is required")
        try:
            return _read_open(path, _open(path))
        except gguf.Malformed as fault:
            _refuse(path, str(fault))
        except (OSError, ValueError) as fault:  # ValueError: a path with a NUL in it
            _refuse(path, _opening_fault(fault))

    def text(self, key: str) -> str:
        """A string of the metadata, "" if there is none with this name."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A whole number of the metadata; None if there is none with this name."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) else None

    def refuse(self, fault: str) -> NoReturn:
        """Raise `ModelFileError`."""
        _refuse(self.path, fault)


def _open(path: Path) -> int:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _read_open(path: Path, descriptor: int) -> _Part:
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            _refuse(path, "is a directory; a GGUF file is required")
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "is not a regular file; a GGUF file is required")
        if status.st_size == 0:
            _refuse(path, "is empty; a GGUF file is required")
        return _read(path, gguf.Reader(descriptor))
    finally:
        os.close(descriptor)


def _opening_fault(fault: OSError | ValueError) -> str:
    match fault:
        case FileNotFoundError() | NotADirectoryError():
            return "does not exist"
        case PermissionError():
            return "is not readable by this user"
        case OSError(strerror=str(words)):
            return f"cannot be read: {words}"
        case _:
            return f"cannot be read: {fault}"


def _refuse(path: Path, fault: str) -> NoReturn:
    raise ModelFileError(f"model file {printable(str(path))}: {fault}", path)


def _sampling(first: _Part) -> dict[str, float]:
    """The recommended sampling values. Fractions are rounded to six significant digits, the precision of an F32."""
    return {
        key.removeprefix(SAMPLING_KEYS): float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in first.metadata.items()
        if key.startswith(SAMPLING_KEYS) and isinstance(value, int | float) and not isinstance(value, bool)
    }


# The kind of model.


def _require_generative(first: _Part, *, encoders: bool) -> str:
    """Refuse a model whose metadata show that it generates no text. Returns the architecture."""
    kind = first.text("general.type")
    if kind in NOT_MODELS:
        first.refuse(f"is {NOT_MODELS[kind]} (general.type {kind}); a whole model is required")
    architecture = first.text("general.architecture")
    if not architecture:
        first.refuse("does not name its architecture; metadata key general.architecture is required")
    required = f"(architecture {architecture}); a model that generates text is required"
    vocabulary = first.text("tokenizer.ggml.model")
    if vocabulary in NO_VOCABULARY:
        first.refuse(f"has no vocabulary: tokenizer.ggml.model is {vocabulary} {required}")
    if first.metadata.get(f"{architecture}.attention.causal") is False and not encoders:
        hint = ", or --embeddings" if first.number(f"{architecture}.pooling_type") else ""
        first.refuse(f"has no causal decoder: {architecture}.attention.causal is false {required}{hint}")
    if first.number(f"{architecture}.pooling_type") == RERANKS:
        first.refuse(f"is a reranker: {architecture}.pooling_type is {RERANKS} {required}")
    return architecture


# Split models.


def _require_first_part(part: _Part, count: int) -> None:
    number = (part.number("split.no") or 0) + 1
    name = _FIRST_PART.fullmatch(part.path.name)
    if number == 1 and name and int(name["count"]) == count:
        return
    required = f"; its first part is required, in a file named …-00001-of-{count:05}.gguf beside the others"
    part.refuse(f"is part {number:,} of {count:,} of a split model{required}")


def _all_parts(first: _Part, count: int) -> list[_Part]:
    """Read and check the other parts. llama.cpp finds them by name, and checks only their numbers."""
    prefix = first.path.name.removesuffix(f"-00001-of-{count:05}.gguf")
    parts = [first]
    for number in range(2, count + 1):
        part = _Part.read(first.path.with_name(f"{prefix}-{number:05}-of-{count:05}.gguf"))
        for key, required in (
            ("split.no", number - 1),
            ("split.count", count),
            ("split.tensors.count", first.number("split.tensors.count")),
        ):
            found = part.number(key)
            if found != required:
                part.refuse(
                    f"is not part {number:,} of {first.path.name}: {key} is {found}, required is {required}"
                )
        parts.append(part)
    return parts


# One file.


def _read(path: Path, reader: gguf.Reader) -> _Part:
    _require_version(reader)
    reader.skip(8, "header")
    tensor_count = reader.u64("header")
    key_count = reader.u64("header")
    if tensor_count > TENSORS_MAX:
        raise gguf.Malformed(f"has {tensor_count:,} tensors; 1 to {TENSORS_MAX:,} are required")
    if key_count > KEYS_MAX:
        raise gguf.Malformed(f"has {key_count:,} metadata keys; at most {KEYS_MAX:,} are accepted")
    metadata: dict[str, gguf.Value] = {}
    for index in range(key_count):
        key = reader.text(f"metadata key {index}")
        metadata[key] = reader.value(reader.u32(f"metadata {key}"), f"metadata {key}")
    _require_data(reader, tensor_count, _alignment(metadata))
    return _Part(path, metadata, tensor_count, reader.size)


def _require_version(reader: gguf.Reader) -> None:
    data = reader.peek(8)
    found = data[:4]
    if found != gguf.MAGIC:
        raise gguf.Malformed(f"is not a GGUF file: it begins with {ascii(found)[1:]}, required is 'GGUF'")
    if len(data) < 8:
        raise gguf.Malformed(f"truncated in header: required 24 bytes or more, the file has {reader.size}")
    (version,) = struct.unpack_from("<I", data, 4)
    (swapped,) = struct.unpack_from(">I", data, 4)
    if version not in VERSIONS and swapped in VERSIONS:
        raise gguf.Malformed("is a big-endian GGUF file; a little-endian one is required")
    if version not in VERSIONS:
        raise gguf.Malformed(f"has GGUF version {version}; version 3 is required (2 is accepted)")


def _alignment(metadata: dict[str, gguf.Value]) -> int:
    alignment = metadata.get("general.alignment", gguf.DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise gguf.Malformed(
            f"metadata general.alignment is not a power of two up to {ALIGNMENT_MAX:,}: {alignment}"
        )
    return alignment


def _require_data(reader: gguf.Reader, count: int, alignment: int) -> None:
    """Read the tensor descriptions, and check that the file contains all their data."""
    data_end, last_name = 0, ""
    for index in range(count):
        name, end = _tensor(reader, index)
        if end > data_end:
            data_end, last_name = end, name
    data_begin = -(-reader.position // alignment) * alignment
    required = data_begin + data_end
    if count and required > reader.size:
        raise gguf.Malformed(
            f"truncated: required {required:,} bytes (the end of tensor {last_name}), the file has {reader.size:,}"
        )


def _tensor(reader: gguf.Reader, index: int) -> tuple[str, int]:
    """Read one description: the tensor's name, and its end within the data."""
    begin = reader.position
    name = reader.text(f"the name of tensor {index}")
    what = f"tensor {name}"
    if reader.position - begin - 8 > gguf.TENSOR_NAME_MAX_BYTES:
        raise gguf.Malformed(f"tensor {index} has a name longer than {gguf.TENSOR_NAME_MAX_BYTES} bytes")
    dimensions = reader.u32(what)
    if dimensions > gguf.TENSOR_DIMENSIONS_MAX:
        raise gguf.Malformed(
            f"{what} has {dimensions:,} dimensions; at most {gguf.TENSOR_DIMENSIONS_MAX} exist"
        )
    elements = 1
    for _ in range(dimensions):
        elements *= reader.u64(what)
    block, block_bytes = gguf.TENSOR_SIZES.get(reader.u32(what), (1, 0))
    return name, reader.u64(what) + elements // block * block_bytes
