"""Is this file a model that can be loaded? Found out at start-up, before anything is loaded.

Everything before the tensors' data is read, and the end of the last tensor compared with the end of the file, so that
a download that stopped half-way is refused here, with one clear line, and not by a crash deep in the engine.

Source: the contract, section 1 (M0-W-1500).
"""

import mmap
import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from worker_orcd.printable import printable
from worker_orcd.supervisor import gguf

VERSIONS = (2, 3)
TENSORS_MAX = 9_999
KEYS_MAX = 65_535
ALIGNMENT_MAX = 1 << 20
NAME_MAX_BYTES = 256
NOT_MODELS = {"adapter": "an adapter (LoRA)", "imatrix": "an importance matrix", "mmproj": "a projector"}
"""`general.type` of files that belong to a model and are none."""
SAMPLING_KEYS = "general.sampling."
"""Numbers below are what the model's makers recommend."""
GUESSED_FILE_TYPE = 1024
"""Set in `general.file_type` when a converter guessed it; the rest of the bits are the type."""


class ModelFileError(Exception):
    """The model file can't be used. The message is one line: the path, what was required, what was found."""

    code: ClassVar[Literal["MODEL_LOAD_FAILED"]] = "MODEL_LOAD_FAILED"

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a GGUF file says about itself. `None`: it does not say.

    `train_context_length` is in tokens. `name` falls back to the file's name, and `quant_kind` ("Q4_1") to the type
    that most of the tensors' bytes have. `sampling` has the numbers below `general.sampling`.
    """

    path: Path
    version: int
    tensor_count: int
    architecture: str
    name: str
    quant_kind: str
    tokenizer_kind: str | None
    size_bytes: int
    train_context_length: int | None
    vocab_size: int | None
    sampling: dict[str, float] = field(default_factory=dict)


def inspect(path: Path) -> ModelFile:
    """Read what comes before the tensors' data and check that all of that data is there.

    Takes about 0.1 s for a vocabulary of 49,000 tokens, and bounded time and memory for any file.
    Raises `ModelFileError`.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        _refuse(path, "has a path that is not UTF-8; one is required")
    try:
        return _inspect_open(path, _open(path))
    except gguf.Malformed as fault:
        _refuse(path, str(fault))
    except (OSError, ValueError) as fault:  # ValueError: a path with a NUL in it
        _refuse(path, _opening_fault(fault))


def _open(path: Path) -> int:
    # O_NONBLOCK: opening a named pipe must not wait for someone to write into it.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _inspect_open(path: Path, descriptor: int) -> ModelFile:
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            _refuse(path, "is a directory; a GGUF file is required")
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "is not a regular file; a GGUF file is required")
        if status.st_size == 0:
            _refuse(path, "is empty; a GGUF file is required")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    finally:
        os.close(descriptor)


def _opening_fault(fault: OSError | ValueError) -> str:
    match fault:
        case FileNotFoundError() | NotADirectoryError():
            return "does not exist"
        case PermissionError():
            return "is not readable by this user"
        case OSError(strerror=str(words)):
            return f"can't be read: {words}"
        case _:
            return f"can't be read: {fault}"


def _refuse(path: Path, fault: str) -> NoReturn:
    raise ModelFileError(f"model file {printable(str(path))}: {fault}", path)


def _read(path: Path, data: mmap.mmap) -> ModelFile:
    version = _version(data)
    reader = gguf.Reader(data)
    reader.skip(8, "header")
    tensor_count = reader.u64("header")
    key_count = reader.u64("header")
    if not 1 <= tensor_count <= TENSORS_MAX:
        raise gguf.Malformed(f"has {tensor_count:,} tensors; 1 to {TENSORS_MAX:,} are required")
    if key_count > KEYS_MAX:
        raise gguf.Malformed(f"has {key_count:,} metadata keys; at most {KEYS_MAX:,} are taken")
    facts = _metadata(reader, key_count)
    if facts.kind in NOT_MODELS:
        raise gguf.Malformed(
            f"is {NOT_MODELS[facts.kind]} (general.type {facts.kind}); a whole model is required"
        )
    if not facts.architecture:
        raise gguf.Malformed("does not say its architecture; metadata key general.architecture is required")
    bytes_by_type = _tensors(reader, tensor_count, facts.alignment)
    return ModelFile(
        path=path,
        version=version,
        tensor_count=tensor_count,
        architecture=facts.architecture,
        name=facts.name or printable(path.stem),
        quant_kind=gguf.FILE_TYPES.get(facts.file_type, "") or bytes_by_type.most_common(1)[0][0],
        tokenizer_kind=facts.tokenizer_kind or None,
        size_bytes=reader.size,
        train_context_length=facts.context_lengths.get(facts.architecture),
        vocab_size=facts.vocab_size,
        sampling=facts.sampling,
    )


def _version(data: mmap.mmap) -> int:
    found = data[:4]
    if found != gguf.MAGIC:
        raise gguf.Malformed(f"is not a GGUF file: it begins with {ascii(found)[1:]}, required is 'GGUF'")
    if len(data) < gguf.HEADER_BYTES:
        raise gguf.Malformed(
            f"truncated in header: required {gguf.HEADER_BYTES} bytes or more, the file has {len(data)}"
        )
    version: int = struct.unpack_from("<I", data, 4)[0]
    (swapped,) = struct.unpack_from(">I", data, 4)
    if version not in VERSIONS and swapped in VERSIONS:
        raise gguf.Malformed("is a big-endian GGUF file; a little-endian one is required")
    if version not in VERSIONS:
        raise gguf.Malformed(f"has GGUF version {version}; version 3 is required (2 is accepted)")
    return version


class _Facts:
    """The metadata that is kept; everything else is walked over."""

    def __init__(self) -> None:
        self.architecture = ""
        self.name = ""
        self.tokenizer_kind = ""
        self.kind = ""
        self.file_type = -1
        self.alignment = gguf.DEFAULT_ALIGNMENT
        self.vocab_size: int | None = None
        self.sampling: dict[str, float] = {}
        self.context_lengths: dict[str, int] = {}
        """By architecture: the key holds it, and nothing says that the architecture's own key comes first."""


def _metadata(reader: gguf.Reader, count: int) -> _Facts:
    facts = _Facts()
    for index in range(count):
        key = reader.text(f"metadata key {index}", NAME_MAX_BYTES)
        _keep(facts, reader, key, reader.u32(f"metadata {key}"))
    return facts


def _keep(facts: _Facts, reader: gguf.Reader, key: str, value_type: int) -> None:
    what = f"metadata {key}"
    match key, value_type:
        case "general.architecture", gguf.STRING:
            facts.architecture = reader.text(what, NAME_MAX_BYTES)
        case "general.name", gguf.STRING:
            facts.name = reader.text(what, NAME_MAX_BYTES)
        case "general.type", gguf.STRING:
            facts.kind = reader.text(what, NAME_MAX_BYTES)
        case "tokenizer.ggml.model", gguf.STRING:
            facts.tokenizer_kind = reader.text(what, NAME_MAX_BYTES)
        case "tokenizer.ggml.tokens", gguf.ARRAY:
            facts.vocab_size = reader.skip_value(value_type, what)
        case _, number if number in gguf.NUMBERS and key.startswith(SAMPLING_KEYS):
            facts.sampling[key.removeprefix(SAMPLING_KEYS)] = reader.number(number, what)
        case "general.alignment", _:
            facts.alignment = _alignment(reader, value_type, what)
        case "general.file_type", number if number in gguf.INTEGERS:
            facts.file_type = reader.integer(number, what) & ~GUESSED_FILE_TYPE
        case _, number if number in gguf.INTEGERS and key.endswith(".context_length"):
            facts.context_lengths[key.removesuffix(".context_length")] = reader.integer(number, what)
        case _:
            reader.skip_value(value_type, what)


def _alignment(reader: gguf.Reader, value_type: int, what: str) -> int:
    alignment = reader.integer(value_type, what) if value_type == gguf.UINT32 else 0
    if not 1 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise gguf.Malformed(f"{what} is not a power of two up to {ALIGNMENT_MAX:,}")
    return alignment


def _tensors(reader: gguf.Reader, count: int, alignment: int) -> Counter[str]:
    """Walk the tensor descriptions and check that the file holds all their data.

    Returns how many bytes there are of each tensor type. Of a type that is newer than our table only the beginning
    can be checked; whether it can be loaded is for the engine to say.
    """
    bytes_by_type: Counter[str] = Counter()
    data_end, last_name = 0, ""
    for index in range(count):
        name, type_name, offset, size = _tensor(reader, index)
        bytes_by_type[type_name] += size
        if offset + size > data_end:
            data_end, last_name = offset + size, name
    data_begin = -(-reader.position // alignment) * alignment
    required = data_begin + data_end
    if required > reader.size:
        raise gguf.Malformed(
            f"truncated: required {required:,} bytes (the end of tensor {last_name}), the file has {reader.size:,}"
        )
    return bytes_by_type


def _tensor(reader: gguf.Reader, index: int) -> tuple[str, str, int, int]:
    """Read one description: name, type name, offset within the data and size in bytes."""
    begin = reader.position
    name = reader.text(f"the name of tensor {index}", NAME_MAX_BYTES)
    what = f"tensor {name}"
    if reader.position - begin - 8 > gguf.TENSOR_NAME_MAX_BYTES:
        raise gguf.Malformed(f"tensor {index} has a name longer than {gguf.TENSOR_NAME_MAX_BYTES} bytes")
    dimensions = reader.u32(what)
    if dimensions > gguf.TENSOR_DIMENSIONS_MAX:
        raise gguf.Malformed(
            f"{what} has {dimensions:,} dimensions; at most {gguf.TENSOR_DIMENSIONS_MAX} exist"
        )
    elements, row = 1, 1
    for dimension in range(dimensions):
        length = reader.u64(what)
        elements *= length
        row = length if dimension == 0 else row
    type_number = reader.u32(what)
    offset = reader.u64(what)
    type_name, block, block_bytes = gguf.TENSOR_TYPES.get(type_number, (f"type {type_number}", 1, 0))
    if row % block:
        raise gguf.Malformed(
            f"{what} has rows of {row:,} elements; {type_name} requires a multiple of {block}"
        )
    return name, type_name, offset, elements // block * block_bytes
