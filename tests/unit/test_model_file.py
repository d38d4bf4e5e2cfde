"""Which model files are accepted at start-up, what is known of them, and what is said of the others."""

import math
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from worker_orcd.settings import bundled_model
from worker_orcd.supervisor import gguf, model_file
from worker_orcd.supervisor.model_file import ModelFile, ModelFileError

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10
Q4_1 = 3


def string(text: str) -> bytes:
    """A GGUF string."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def text_value(text: str) -> bytes:
    """A metadata value of type string."""
    return struct.pack("<I", STRING) + string(text)


def u32_value(number: int) -> bytes:
    """A metadata value of type unsigned 32-bit."""
    return struct.pack("<II", U32, number)


def array_value(item_type: int, count: int, items: bytes) -> bytes:
    """A metadata value of type array."""
    return struct.pack("<IIQ", ARRAY, item_type, count) + items


def tensor(name: str, dimensions: list[int], kind: int, offset: int) -> bytes:
    """A tensor's description."""
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


@dataclass
class Gguf:
    """A small model file, whole and right unless a test changes it."""

    version: int = 3
    metadata: dict[str, bytes] = field(
        default_factory=lambda: {
            "general.architecture": text_value("llama"),
            "general.name": text_value("Tiny"),
            "general.file_type": u32_value(Q4_1),
            "llama.context_length": u32_value(2048),
            "tokenizer.ggml.model": text_value("gpt2"),
            "tokenizer.ggml.tokens": array_value(STRING, 3, string("a") + string("") + string("hé")),
            "tokenizer.ggml.scores": array_value(F32, 2, struct.pack("<2f", 0.5, 1.5)),
        }
    )
    tensors: list[bytes] = field(
        default_factory=lambda: [tensor("w", [64, 2], Q4_1, 0), tensor("norm", [4], 0, 96)]
    )
    data_bytes: int = 96 + 16
    alignment: int = 32
    key_count: int | None = None
    tensor_count: int | None = None

    def bytes(self) -> bytes:
        """The whole file."""
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.metadata) if self.key_count is None else self.key_count
        head = b"GGUF" + struct.pack("<IQQ", self.version, tensor_count, key_count)
        head += b"".join(string(key) + value for key, value in self.metadata.items())
        head += b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + bytes(self.data_bytes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test puts its model file."""
    return tmp_path / "tiny.gguf"


def accepted(path: Path, file: Gguf) -> ModelFile:
    """Write the file and inspect it."""
    path.write_bytes(file.bytes())
    return model_file.inspect(path)


def refusal(path: Path, content: Gguf | bytes | None = None) -> str:
    """Write the content, if there is any, and return the line with which it is refused, without the path."""
    if content is not None:
        path.write_bytes(content.bytes() if isinstance(content, Gguf) else content)
    with pytest.raises(ModelFileError) as caught:
        model_file.inspect(path)
    assert caught.value.code == "MODEL_LOAD_FAILED"
    assert caught.value.path == path
    assert str(caught.value) == caught.value.message
    assert caught.value.message.isprintable()
    prefix = f"model file {path}: "
    assert caught.value.message.startswith(prefix)
    return caught.value.message.removeprefix(prefix)


def test_a_whole_file_is_accepted_with_its_facts(path: Path) -> None:
    """Everything that health reports about the model comes from here."""
    file = Gguf()
    assert accepted(path, file) == ModelFile(
        path=path,
        version=3,
        tensor_count=2,
        architecture="llama",
        name="Tiny",
        quant_kind="Q4_1",
        tokenizer_kind="gpt2",
        size_bytes=len(file.bytes()),
        train_context_length=2048,
        vocab_size=3,
    )


def test_version_2_is_accepted(path: Path) -> None:
    """Version 2 has the same layout."""
    assert accepted(path, Gguf(version=2)).version == 2


def test_what_a_file_does_not_say_is_none_or_found_elsewhere(path: Path) -> None:
    """Only the architecture is required; the name and quantization have second sources."""
    facts = accepted(path, Gguf(metadata={"general.architecture": text_value("llama")}))
    assert (facts.name, facts.quant_kind) == ("tiny", "Q4_1")
    assert (facts.tokenizer_kind, facts.train_context_length, facts.vocab_size) == (None, None, None)


def test_the_context_length_is_that_of_the_files_architecture(path: Path) -> None:
    """The order of the keys does not matter, and another architecture's key does not count."""
    metadata = {
        "other.context_length": u32_value(1),
        "llama.context_length": struct.pack("<IQ", U64, 2048),
        "general.architecture": text_value("llama"),
    }
    assert accepted(path, Gguf(metadata=metadata)).train_context_length == 2048


def test_a_guessed_file_type_is_the_type_without_the_mark(path: Path) -> None:
    """Converters mark a guessed type with one more bit."""
    file = Gguf()
    file.metadata["general.file_type"] = u32_value(1024 + 15)
    assert accepted(path, file).quant_kind == "Q4_K_M"


def test_a_declared_alignment_is_followed(path: Path) -> None:
    """The data begins at the file's own alignment."""
    file = Gguf(alignment=512)
    file.metadata["general.alignment"] = u32_value(512)
    assert accepted(path, file).tensor_count == 2
    assert "truncated" in refusal(path, file.bytes()[:-1])


def test_a_tensor_type_newer_than_our_table_is_left_to_the_engine(path: Path) -> None:
    """A newer llama.cpp may know it: the size can't be checked, but the place of its data is."""
    file = Gguf(tensors=[tensor("w", [64], 99, 0)], data_bytes=0)
    del file.metadata["general.file_type"]
    assert accepted(path, file).quant_kind == "type 99"
    assert "truncated" in refusal(path, Gguf(tensors=[tensor("w", [64], 99, 4096)]))


def test_a_file_that_does_not_exist_is_refused(path: Path) -> None:
    """A wrong path is said as such."""
    assert refusal(path) == "does not exist"


def test_a_path_through_a_file_is_refused(path: Path) -> None:
    """A file where a directory should be means that the model is not there."""
    path.write_bytes(b"")
    assert refusal(path / "model.gguf") == "does not exist"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory of models is not a model."""
    assert refusal(tmp_path) == "is a directory; a GGUF file is required"


def test_an_unreadable_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user is said to be so. (Root may read everything, so the system's answer is played.)"""

    def deny(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(model_file, "_open", deny)
    assert refusal(path, Gguf()) == "is not readable by this user"


def test_a_named_pipe_is_refused_without_waiting(path: Path) -> None:
    """Opening a pipe that nobody writes to must not hang the start."""
    os.mkfifo(path)
    assert refusal(path) == "is not a regular file; a GGUF file is required"


def test_a_path_with_a_nul_is_refused() -> None:
    """What the system can't even look up is refused like the rest, in one printable line."""
    with pytest.raises(ModelFileError) as caught:
        model_file.inspect(Path("a\0b"))
    assert caught.value.message.startswith("model file a\\x00b: can't be read: ")


def test_an_over_long_path_is_refused(tmp_path: Path) -> None:
    """Any other answer of the system is passed on in its words."""
    assert refusal(tmp_path / ("x" * 300)).startswith("can't be read: ")


def test_an_empty_file_is_refused(path: Path) -> None:
    """A download that never began."""
    assert refusal(path, b"") == "is empty; a GGUF file is required"


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(64), b"GGU", b"<html>\n" + bytes(64)])
def test_another_format_is_refused(path: Path, content: bytes) -> None:
    """The first bytes are shown, because they often tell what the file is."""
    line = refusal(path, content)
    assert line == f"is not a GGUF file: it begins with {ascii(content[:4])[1:]}, required is 'GGUF'"


@pytest.mark.parametrize("version", [0, 1, 4, 99])
def test_other_versions_are_refused(path: Path, version: int) -> None:
    """Version 1 has another layout, and later ones are unknown."""
    line = refusal(path, Gguf(version=version))
    assert line == f"has GGUF version {version}; version 3 is required (2 is accepted)"


def test_a_big_endian_file_is_refused_as_such(path: Path) -> None:
    """Its version would read as 50,331,648, which helps nobody."""
    content = b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64)
    assert refusal(path, content) == "is a big-endian GGUF file; a little-endian one is required"


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (10_000, "10,000"), (2**64 - 1, f"{2**64 - 1:,}")])
def test_ten_thousand_tensors_or_none_are_refused(path: Path, count: int, shown: str) -> None:
    """The contract's bound, said before anything is walked."""
    line = refusal(path, Gguf(tensor_count=count))
    assert line == f"has {shown} tensors; 1 to 9,999 are required"


def test_9999_tensors_are_accepted(path: Path) -> None:
    """Fewer than 10,000 means that 9,999 are fine."""
    file = Gguf(tensors=[tensor(f"t{index}", [1], 0, 0) for index in range(9_999)])
    assert accepted(path, file).tensor_count == 9_999


def test_a_truncated_download_says_what_is_missing(path: Path) -> None:
    """One byte short is refused, with the bytes required and the bytes there."""
    whole = Gguf().bytes()
    assert refusal(path, whole[:-1]) == (
        f"truncated: required {len(whole):,} bytes (the end of tensor norm), the file has {len(whole) - 1:,}"
    )


def test_truncated_metadata_says_where(path: Path) -> None:
    """A file that ends in the middle of its metadata names the key."""
    whole = Gguf().bytes()
    line = refusal(path, whole[: whole.index(b"Tiny") + 2])
    assert line.startswith("truncated in metadata general.name: required ")


def test_a_missing_architecture_is_refused(path: Path) -> None:
    """Without it no engine knows what to build."""
    assert "general.architecture is required" in refusal(path, Gguf(metadata={}))


@pytest.mark.parametrize("alignment", [u32_value(0), u32_value(48), u32_value(2**31), text_value("32")])
def test_an_impossible_alignment_is_refused(path: Path, alignment: bytes) -> None:
    """Only powers of two, as an unsigned 32-bit number."""
    file = Gguf()
    file.metadata["general.alignment"] = alignment
    assert "general.alignment is not a power of two" in refusal(path, file)


@pytest.mark.parametrize(
    ("description", "fault"),
    [
        (tensor("w", [65, 2], Q4_1, 0), "rows of 65 elements; Q4_1 requires a multiple of 32"),
        (tensor("w", [1] * 5, 0, 0), "has 5 dimensions; at most 4 exist"),
        (tensor("w", [2**63] * 4, 0, 0), "truncated: required "),
        (tensor("w" * 64, [4], 0, 0), "name longer than 63 bytes"),
    ],
)
def test_an_impossible_tensor_is_refused(path: Path, description: bytes, fault: str) -> None:
    """Shapes that no model has, and sizes that no file has."""
    assert fault in refusal(path, Gguf(tensors=[description]))


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IQ", STRING, 2**63),
        struct.pack("<IQ", STRING, 2**64 - 1),
        array_value(STRING, 2**60, b""),
        array_value(STRING, 2**64 - 1, b""),
        array_value(U64, 2**61, b""),
        array_value(ARRAY, 1, array_value(ARRAY, 1, b"")),
        array_value(13, 1, b""),
        struct.pack("<I", 13),
        struct.pack("<I", 2**32 - 1),
    ],
    ids=str,
)
def test_lengths_that_lie_are_refused_at_once(path: Path, value: bytes) -> None:
    """No length is believed beyond what the file could hold, and none is allocated."""
    metadata = {"general.architecture": text_value("llama"), "hostile": value}
    begin = time.perf_counter()
    refusal(path, Gguf(metadata=metadata))
    assert time.perf_counter() - begin < 1


def test_a_huge_sparse_file_of_empty_strings_is_refused_in_bounded_time(path: Path) -> None:
    """A terabyte of zeros is free to make: walking it as strings would take hours."""
    metadata = {"general.architecture": text_value("llama"), "hostile": array_value(STRING, 2**36, b"")}
    path.write_bytes(Gguf(metadata=metadata).bytes())
    try:
        os.truncate(path, 2**40)
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    assert refusal(path).startswith("metadata hostile has more items than any model")


def test_too_many_keys_are_refused(path: Path) -> None:
    """Real models have some dozens."""
    assert refusal(path, Gguf(key_count=2**40)).endswith("metadata keys; at most 65,535 are taken")


def test_recommended_sampling_is_read(path: Path) -> None:
    """Numbers of every type; an F32 as its makers wrote it. Texts are walked over."""
    file = Gguf()
    file.metadata |= {
        "general.sampling.temp": struct.pack("<If", F32, 0.7),
        "general.sampling.top_k": struct.pack("<Ii", 5, 20),
        "general.sampling.top_p": struct.pack("<Id", 12, 0.95),
        "general.sampling.min_p": struct.pack("<If", F32, float("nan")),
        "general.sampling.sequence": text_value("kpt"),
    }
    sampling = accepted(path, file).sampling
    assert math.isnan(sampling.pop("min_p"))
    assert sampling == {"temp": 0.7, "top_k": 20, "top_p": 0.95}


def test_names_from_the_file_are_short_and_printable(path: Path) -> None:
    """They end up in health, narration and on terminals."""
    file = Gguf()
    file.metadata["general.name"] = text_value("\x1b[31mred\n" + "x" * 100_000)
    name = accepted(path, file).name
    assert name.startswith("\\x1b[31mred\\nxxx")
    assert len(name) <= 256
    assert name.isprintable()


def outcome(path: Path, content: bytes) -> ModelFile | ModelFileError:
    """Inspect the content; anything but a `ModelFile` or a `ModelFileError` fails the test."""
    path.write_bytes(content)
    try:
        return model_file.inspect(path)
    except ModelFileError as refused:
        return refused


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One path for all examples of a property."""
    return tmp_path_factory.mktemp("model") / "scratch.gguf"


def test_every_truncation_is_refused(scratch: Path) -> None:
    """Wherever a download stops, the file is refused: all lengths are tried."""
    whole = Gguf().bytes()
    for length in range(len(whole)):
        assert isinstance(outcome(scratch, whole[:length]), ModelFileError), length


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=8))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_give_a_model_or_a_refusal(scratch: Path, flips: list[tuple[int, int]]) -> None:
    """Whatever is wrong in a file, it is accepted or refused in one printable line, soon."""
    content = bytearray(Gguf().bytes())
    for position, change in flips:
        content[position % len(content)] ^= change
    result = outcome(scratch, bytes(content))
    if isinstance(result, ModelFileError):
        assert result.message.isprintable()


@given(tail=st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_after_a_right_header_give_a_model_or_a_refusal(scratch: Path, tail: bytes) -> None:
    """The reader keeps to the file whatever stands in it."""
    outcome(scratch, b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + tail)


def test_tensor_types_have_sane_sizes() -> None:
    """No type takes more than 8 bytes or less than one bit per element."""
    for name, block, block_bytes in gguf.TENSOR_TYPES.values():
        assert block / 8 <= block_bytes <= 8 * block, name


def test_the_bundled_model_is_accepted_with_its_facts() -> None:
    """The real file, with a real vocabulary, soon enough to be no part of the start's time."""
    path = bundled_model()
    begin = time.perf_counter()
    facts = model_file.inspect(path)
    first = time.perf_counter() - begin
    assert facts == ModelFile(
        path=path,
        version=3,
        tensor_count=272,
        architecture="llama",
        name="Smollm2 135M 8k Lc100K Mix1 Ep2",
        quant_kind="Q4_1",
        tokenizer_kind="gpt2",
        size_bytes=98_362_432,
        train_context_length=8192,
        vocab_size=49_152,
    )
    assert first < 1, "it takes about 0.05 s on an idle machine"


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """It could not be sent to the engine, nor written into an answer. One line, printable."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.gguf"))
    with pytest.raises(ModelFileError) as caught:
        model_file.inspect(path)
    assert "not UTF-8" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("kind", "words"),
    [("adapter", "an adapter (LoRA)"), ("imatrix", "an importance matrix"), ("mmproj", "a projector")],
)
def test_a_file_that_is_no_model_is_refused_as_what_it_is(tmp_path: Path, kind: str, words: str) -> None:
    """By its own general.type, before anything is loaded."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    path = tmp_path / "m.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    path.write_bytes(header + text("general.type") + struct.pack("<I", 8) + text(kind))
    with pytest.raises(ModelFileError) as caught:
        model_file.inspect(path)
    assert f"is {words} (general.type {kind})" in caught.value.message
