"""Model files with false metadata: each is refused in one line or starts, in bounded time and memory.

`MODEL_FILE_FUZZ` is how many are tried, 60 if it is not set; the nightly lane tries 50 times as many. llama.cpp may
crash on such a file: that ends the engine process, and the worker's start with one line.
"""

import json
import math
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model_files.mutations import Gguf, mutated
from tests.terminal import run
from tests.tiny import TinyModels
from worker_orcd.engine import memory_limit
from worker_orcd.supervisor import gguf, model_file
from worker_orcd.testing.harness import free_port

pytestmark = pytest.mark.real

COUNT = int(os.environ.get("MODEL_FILE_FUZZ", "60"))
MODELS = (
    *(("llama", "llama"), ("llama-spm", "llama"), ("llama-ugm", "llama"), ("llama-rwkv", "llama")),
    *(("llama-wpm", "llama"), ("llama-plamo2", "llama"), ("llama-moe", "llama"), ("gemma3", "gemma3")),
)
"""One of each kind of vocabulary, one with experts, one with a sliding window; with their architectures."""
LIMIT_MIB = 1024
"""A file here has at most 0.3 MiB."""
SMALL: dict[str, Any] = {
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
}


class Engines:
    """Loads files in engine processes, one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.model_files.loading"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Load the file in an engine. Returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(path, file=self._process.stdin, flush=True)
        outcome: dict[str, Any] = json.loads(self._process.stdout.readline())
        return outcome

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """Engines for all tests of this file."""
    made = Engines()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bases(tiny_models: TinyModels) -> list[Path]:
    """The files that are changed."""
    return [
        tiny_models.path(name, "Q8_0", **{f"{architecture}.{key}": value for key, value in SMALL.items()})
        for name, architecture in MODELS
    ]


def outcome_of(path: Path, engines: Engines) -> dict[str, Any]:
    """What the front makes of the file and, if it accepts the file, what an engine does."""
    try:
        model_file.inspect(path)
    except model_file.ModelFileError as error:
        return {"end": "refused by the front", "message": error.message}
    return engines.load(path)


def tried(bases: list[Path], engines: Engines, path: Path, seeds: range) -> Counter[str]:
    """Try a file for each seed. Returns how often each outcome occurred."""
    ends: Counter[str] = Counter()
    for seed in seeds:
        path.write_bytes(mutated(bases[seed % len(bases)], random.Random(seed)))
        outcome = outcome_of(path, engines)
        ends[outcome["end"]] += 1
        said = f"seed {seed}: {outcome}"
        assert outcome["end"] not in ("load hung", "prompt hung", "prompt crashed"), said
        assert outcome.get("message", "").isprintable(), said
        assert "Traceback" not in outcome.get("printed", ""), said
        assert outcome.get("mib", 0) < LIMIT_MIB, said
    print(f"{sum(ends.values())} model files: {dict(ends)}")
    return ends


def test_files_that_lie_are_refused_in_one_line_or_start(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """The unchanged files start, so each refusal is due to the change."""
    assert [outcome_of(path, engines)["end"] for path in bases] == ["ready"] * len(bases)
    ends = tried(bases, engines, tmp_path / "m.gguf", range(COUNT))
    assert {"refused by the front", "refused", "ready"} <= set(ends)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_many_files_that_lie_are_refused_in_one_line_or_start(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """Different files from those of the short test."""
    tried(bases, engines, tmp_path / "m.gguf", range(COUNT, COUNT + 50 * COUNT))


def test_a_file_that_crashes_llama_cpp_ends_the_start_with_one_line(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """More experts than llama.cpp takes are an assertion there: one engine, no debugger's dump, exit code 1."""
    file = Gguf.read(bases[0])
    file.keys.append((b"llama.expert_count", struct.pack("<II", 4, 1_000_000)))
    path = tmp_path / "m.gguf"
    path.write_bytes(file.bytes())
    assert engines.load(path)["end"] == "load crashed"
    result = run("--model", str(path), "--port", str(free_port()), "--log-format", "json")
    assert (result.stdout, result.returncode) == ("", 1)
    *printed, last = result.stderr.splitlines()
    died = "the engine died of SIGABRT while it loaded the model"
    assert last == f"worker-orcd: MODEL_LOAD_FAILED: model file {path}: {died}"
    assertions = [line for line in printed if not line.startswith("{")]
    assert len(assertions) == 1, result.stderr
    assert "GGML_ASSERT" in assertions[0]


def test_a_vocabulary_that_crashes_llama_cpp_at_each_text_ends_the_start(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """A WPM vocabulary without the token that begins a text: found before the worker is ready, not at a prompt."""
    file = Gguf.read(bases[[name for name, _ in MODELS].index("llama-wpm")])
    nothing = struct.pack("<II", 4, 2**32 - 1)
    file.keys = [
        (key, nothing if key == b"tokenizer.ggml.bos_token_id" else value) for key, value in file.keys
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(file.bytes())
    outcome = outcome_of(path, engines)
    assert outcome["end"] == "load crashed"
    assert "special_bos_id" in outcome["printed"]


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_a_vocabulary_that_takes_all_memory_is_refused(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """llama.cpp keeps each suffix of each token of a PLaMo 2 vocabulary: of a long one, more than any machine has."""
    file = Gguf.read(bases[[name for name, _ in MODELS].index("llama-plamo2")])
    letters = bytes(97 + index * 7919 % 26 for index in range(2_000_000))
    file.keys = [
        (key, _with_last(value, letters) if key == b"tokenizer.ggml.tokens" else value)
        for key, value in file.keys
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(file.bytes())
    outcome = outcome_of(path, engines)
    assert outcome["end"] == "refused"
    assert outcome["message"].endswith("bad_alloc")
    assert outcome["mib"] < (memory_limit.SPARE_BYTES >> 20) + 256


def _with_last(tokens: bytes, last: bytes) -> bytes:
    """An array of strings with another last one."""
    _, _, count = struct.unpack_from("<IIQ", tokens)
    at = 16
    for _ in range(count - 1):
        at += 8 + struct.unpack_from("<Q", tokens, at)[0]
    return tokens[:at] + struct.pack("<Q", len(last)) + last


def split_in_two(whole: Path, folder: Path) -> list[Path]:
    """The same model in two files, the first of them without tensors."""
    files = [Gguf.read(whole), Gguf.read(whole)]
    tensors = len(files[0].tensors)
    files[0].tensors, files[0].data = [], b""
    files[1].keys = []
    paths = []
    for number, file in enumerate(files):
        numbers = ((b"split.no", number), (b"split.count", 2))
        file.keys += [(key, struct.pack("<IH", 2, value)) for key, value in numbers]
        file.keys.append((b"split.tensors.count", struct.pack("<Ii", 5, tensors)))
        paths.append(folder / f"m-{number + 1:05}-of-00002.gguf")
        paths[-1].write_bytes(file.bytes())
    return paths


def test_a_split_model_starts_and_is_refused_with_a_cut_part(
    bases: list[Path], engines: Engines, tmp_path: Path
) -> None:
    """llama.cpp loads what the front accepts, and a part without its last byte is refused before that."""
    first, second = split_in_two(bases[0], tmp_path)
    assert outcome_of(first, engines)["end"] == "ready"
    end = Gguf.read(second)
    _, dimensions, kind, offset = end.tensors[-1]
    block, block_bytes = gguf.TENSOR_SIZES[kind]
    needed = offset + math.prod(dimensions) // block * block_bytes
    os.truncate(second, second.stat().st_size - len(end.data) + needed - 1)
    outcome = outcome_of(first, engines)
    assert outcome["end"] == "refused by the front"
    assert outcome["message"].startswith(f"model file {second}: truncated: ")
