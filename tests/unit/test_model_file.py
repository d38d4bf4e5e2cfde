"""Which model files are accepted at start-up, what is read from them, and how the others are refused."""

import itertools
import math
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.lanes import examples
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
    """By this name clients may ask for the model before it is loaded."""
    file = Gguf()
    assert accepted(path, file) == ModelFile(
        path=path,
        architecture="llama",
        name="Tiny",
        tensor_count=2,
        size_bytes=len(file.bytes()),
    )


def test_version_2_is_accepted(path: Path) -> None:
    """Version 2 has the same layout."""
    assert accepted(path, Gguf(version=2)).architecture == "llama"


def test_a_file_without_a_name_has_its_path_for_one(path: Path) -> None:
    """Only the architecture is required."""
    assert accepted(path, Gguf(metadata={"general.architecture": text_value("llama")})).name == "tiny"


def test_a_declared_alignment_is_followed(path: Path) -> None:
    """The data begins at the file's own alignment."""
    file = Gguf(alignment=512)
    file.metadata["general.alignment"] = u32_value(512)
    assert accepted(path, file).tensor_count == 2
    assert "truncated" in refusal(path, file.bytes()[:-1])


def test_a_tensor_type_newer_than_our_table_is_left_to_the_engine(path: Path) -> None:
    """A newer llama.cpp may know it: the size can't be checked, but the place of its data is."""
    assert accepted(path, Gguf(tensors=[tensor("w", [64], 99, 0)], data_bytes=0)).tensor_count == 1
    assert "truncated" in refusal(path, Gguf(tensors=[tensor("w", [64], 99, 4096)]))


def test_a_file_that_does_not_exist_is_refused(path: Path) -> None:
    """A wrong path is said as such."""
    assert refusal(path) == "does not exist"


def test_a_path_through_a_file_is_refused(path: Path) -> None:
    """A file stands where the path has a directory, so there is no model."""
    path.write_bytes(b"")
    assert refusal(path / "model.gguf") == "does not exist"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory of models is not a model."""
    assert refusal(tmp_path) == "is a directory; a GGUF file is required"


def test_an_unreadable_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says that the file may not be read. (Root may read every file, so the system's error is
    simulated.)"""

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
    assert caught.value.message.startswith("model file a\\x00b: cannot be read: ")


def test_an_over_long_path_is_refused(tmp_path: Path) -> None:
    """Any other error of the system is reported in its own words."""
    assert refusal(tmp_path / ("x" * 300)).startswith("cannot be read: ")


def test_an_empty_file_is_refused(path: Path) -> None:
    """A download that has not begun."""
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
    """Its version would read as 50,331,648, which explains nothing."""
    content = b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64)
    assert refusal(path, content) == "is a big-endian GGUF file; a little-endian one is required"


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (10_000, "10,000"), (2**64 - 1, f"{2**64 - 1:,}")])
def test_ten_thousand_tensors_or_none_are_refused(path: Path, count: int, shown: str) -> None:
    """The contract's bound is checked before any tensor is read."""
    line = refusal(path, Gguf(tensor_count=count))
    assert line == f"has {shown} tensors; 1 to 9,999 are required"


def test_9999_tensors_are_accepted(path: Path) -> None:
    """The bound is "fewer than 10,000"."""
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
    """Without it the engine does not know which model to build."""
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
    """No length is believed beyond what the file could hold, and no memory is allocated for it."""
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
    assert refusal(path, Gguf(key_count=2**40)).endswith("metadata keys; at most 65,535 are accepted")


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
    """They are shown in health, log events and terminals."""
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
@settings(max_examples=examples(250), deadline=None)
def test_flipped_bytes_give_a_model_or_a_refusal(scratch: Path, flips: list[tuple[int, int]]) -> None:
    """Whatever is wrong in a file, it is accepted or refused in one printable line, soon."""
    content = bytearray(Gguf().bytes())
    for position, change in flips:
        content[position % len(content)] ^= change
    result = outcome(scratch, bytes(content))
    if isinstance(result, ModelFileError):
        assert result.message.isprintable()


@given(tail=st.binary(max_size=400))
@settings(max_examples=examples(150), deadline=None)
def test_any_bytes_after_a_right_header_give_a_model_or_a_refusal(scratch: Path, tail: bytes) -> None:
    """The reader never leaves the file, whatever it contains."""
    outcome(scratch, b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + tail)


def long_vocabulary() -> Gguf:
    """A file that the check reads in many pieces."""
    file = Gguf()
    file.metadata["tokenizer.ggml.tokens"] = array_value(STRING, 20_000, 20_000 * string("0123456789"))
    return file


def while_read(
    monkeypatch: pytest.MonkeyPatch, path: Path, piece: int, change: Callable[[], object]
) -> ModelFile | ModelFileError:
    """Inspect a file that another process changes just before the check reads its piece of this number."""
    path.write_bytes(long_vocabulary().bytes())
    read, pieces = os.pread, itertools.count()

    def changed_then_read(*arguments: int) -> bytes:
        if next(pieces) == piece:
            change()
        return read(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", changed_then_read)
        try:
            return model_file.inspect(path)
        except ModelFileError as refused:
            return refused


@pytest.mark.parametrize("left", [0, 100, 4096, 100_000])
def test_a_file_that_is_cut_while_it_is_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """In one line, whichever piece is read next. If the file were mapped, SIGBUS would end the front."""
    results = [while_read(monkeypatch, path, piece, lambda: os.truncate(path, left)) for piece in range(3)]
    for result in results:
        assert isinstance(result, ModelFileError)
        assert "became shorter than its" in result.message
        assert result.message.isprintable()


@given(piece=st.integers(0, 6), seed=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_is_overwritten_while_it_is_read_gives_a_model_or_a_refusal(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, piece: int, seed: random.Random
) -> None:
    """Whatever is written over it, and also if it grows."""
    result = while_read(
        monkeypatch, scratch, piece, lambda: scratch.write_bytes(seed.randbytes(seed.randrange(200_000)))
    )
    if isinstance(result, ModelFileError):
        assert result.message.isprintable()


def test_a_file_that_changes_all_the_time_never_ends_the_front(path: Path) -> None:
    """Without an order of events: another process checks the file again and again while it is cut and made whole."""
    whole = long_vocabulary().bytes()
    path.write_bytes(whole)
    program = (
        "import sys; from pathlib import Path; from worker_orcd.supervisor import model_file\n"
        "while True:\n"
        "    try: model_file.inspect(Path(sys.argv[1]))\n"
        "    except model_file.ModelFileError: pass\n"
        "    print(flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        for _ in range(300):
            assert front.stdout.readline() == b"\n", f"the front ended with {front.wait()}"
            os.truncate(path, 4096)
            path.write_bytes(whole)
        front.kill()


def test_tensor_sizes_are_those_of_the_gguf_package() -> None:
    """So the table follows the format; Q8_1 is of another size there, and in no file."""
    published = {int(kind): size for kind, size in GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    assert {kind: size for kind, size in gguf.TENSOR_SIZES.items() if kind in published} == published


def test_the_bundled_model_is_accepted_with_its_facts() -> None:
    """The real file, with a real vocabulary, soon enough to be no part of the start's time."""
    path = bundled_model()
    begin = time.perf_counter()
    facts = model_file.inspect(path)
    first = time.perf_counter() - begin
    assert facts == ModelFile(
        path=path,
        architecture="llama",
        name="Smollm2 135M 8k Lc100K Mix1 Ep2",
        tensor_count=272,
        size_bytes=98_362_432,
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

    path = tmp_path / "m.gguf"
    line = refusal(path, Gguf(metadata={"general.type": text_value(kind)}))
    assert line == f"is {words} (general.type {kind}); a whole model is required"


def bool_value(value: bool) -> bytes:
    """A metadata value of type bool."""
    return struct.pack("<IB", 7, value)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("tokenizer.ggml.model", text_value("none"), "has no vocabulary: tokenizer.ggml.model is none"),
        (
            "tokenizer.ggml.model",
            text_value("no_vocab"),
            "has no vocabulary: tokenizer.ggml.model is no_vocab",
        ),
        ("x.attention.causal", bool_value(False), "has no causal decoder: x.attention.causal is false"),
        ("x.pooling_type", u32_value(4), "is a reranker: x.pooling_type is 4"),
    ],
)
def test_what_generates_no_text_is_refused_as_what_it_is(
    path: Path, key: str, value: bytes, fault: str
) -> None:
    """By its own metadata, whatever its architecture is called, and wherever the key stands."""
    file = Gguf(metadata={key: value, "general.architecture": text_value("x")})
    assert refusal(path, file) == f"{fault} (architecture x); a model that generates text is required"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("x.attention.causal", bool_value(True)),
        ("x.pooling_type", u32_value(0)),
        ("x.pooling_type", u32_value(3)),
        ("y.attention.causal", bool_value(False)),
        ("y.pooling_type", u32_value(1)),
        ("general.type", text_value("model")),
    ],
)
def test_what_may_generate_text_is_left_to_the_engine(path: Path, key: str, value: bytes) -> None:
    """Another architecture's keys do not count."""
    metadata = {key: value, "general.architecture": text_value("x")}
    assert accepted(path, Gguf(metadata=metadata)).architecture == "x"


def u16_value(number: int) -> bytes:
    """A metadata value of type unsigned 16-bit, as the splitter writes numbers of parts."""
    return struct.pack("<IH", 2, number)


def part(number: int, count: int = 3, tensors: int = 4, **metadata: bytes) -> Gguf:
    """A part of a split model; only the first one has metadata, and here no tensors."""
    file = Gguf(metadata={}) if number > 1 else Gguf(tensors=[], data_bytes=0)
    file.metadata |= {
        "split.no": u16_value(number - 1),
        "split.count": u16_value(count),
        "split.tensors.count": struct.pack("<Ii", 5, tensors),
    }
    file.metadata |= {key.replace("_", "."): value for key, value in metadata.items()}
    return file


def write_parts(folder: Path, *parts: Gguf) -> list[Path]:
    """Write the parts of a model by the names that llama.cpp looks for."""
    paths = [folder / f"m-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)]
    for path, file in zip(paths, parts, strict=True):
        path.write_bytes(file.bytes())
    return paths


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """A whole model in three files."""
    return write_parts(tmp_path, part(1), part(2), part(3))


def refused_part(first: Path) -> tuple[Path, str]:
    """The part at fault, and what is wrong with it."""
    with pytest.raises(ModelFileError) as caught:
        model_file.inspect(first)
    shown, fault = caught.value.message.removeprefix("model file ").split(": ", 1)
    assert shown == str(caught.value.path)
    return caught.value.path, fault


def test_a_split_model_is_all_its_parts(split: list[Path]) -> None:
    """Tensors and bytes are those of all parts; the first one may have none."""
    found = model_file.inspect(split[0])
    assert (found.tensor_count, found.name) == (4, "Tiny")
    assert found.size_bytes == sum(path.stat().st_size for path in split)


def test_a_missing_part_is_named(split: list[Path]) -> None:
    """Before anything is loaded."""
    split[2].unlink()
    assert refused_part(split[0]) == (split[2], "does not exist")


def test_a_cut_part_is_named(split: list[Path]) -> None:
    """Wherever it is cut: all lengths are tried."""
    whole = split[1].read_bytes()
    for length in range(len(whole)):
        split[1].write_bytes(whole[:length])
        assert refused_part(split[0])[0] == split[1], length


@pytest.mark.parametrize(
    ("foreign", "fault"),
    [
        (part(3), "split.no is 2, required is 1"),
        (part(2, count=4), "split.count is 4, required is 3"),
        (part(2, tensors=5), "split.tensors.count is 5, required is 4"),
        (Gguf(), "split.no is None, required is 1"),
        (part(2, split_no=text_value("1")), "split.no is None, required is 1"),
    ],
)
def test_a_part_of_another_model_is_named(split: list[Path], foreign: Gguf, fault: str) -> None:
    """llama.cpp looks at the numbers only, and loads what it finds."""
    split[1].write_bytes(foreign.bytes())
    assert refused_part(split[0]) == (split[1], f"is not part 2 of {split[0].name}: {fault}")


def test_parts_with_too_few_tensors_are_refused(split: list[Path]) -> None:
    """What the first part says of the whole has to be there."""
    short = part(3)
    short.tensors.pop()
    split[2].write_bytes(short.bytes())
    assert refused_part(split[0]) == (split[0], "declares 4 tensors in its 3 parts; they have 3")


def test_a_start_with_another_part_says_which_is_first(split: list[Path]) -> None:
    """The others hold no metadata of the model."""
    path, fault = refused_part(split[1])
    assert path == split[1]
    assert fault.startswith("is part 2 of 3 of a split model; its first part is required, in a file named ")
    assert "-00001-of-00003.gguf" in fault


def test_a_renamed_part_says_how_it_has_to_be_named(split: list[Path]) -> None:
    """The others are found by its name."""
    renamed = split[0].rename(split[0].with_name("renamed.gguf"))
    assert "-00001-of-00003.gguf" in refused_part(renamed)[1]
