"""Files of models that generate no text: the worker refuses each with one line that says what it is, and exits with 1.

The front refuses by the file's own metadata. Where that says nothing (the test takes the keys out), the engine refuses
by llama.cpp's word. With `--embeddings` encoders are served (`tests/models/test_embeddings.py`).
"""

from typing import Any

import pytest

from tests.terminal import run
from tests.tiny import TinyModels
from worker_orcd.testing.harness import free_port

BY_METADATA = {
    "bert": ("has no causal decoder: bert.attention.causal is false", "bert"),
    "nomic-bert": ("has no causal decoder: nomic-bert.attention.causal is false", "nomic-bert"),
    "llada": ("has no causal decoder: llada.attention.causal is false", "llada"),
    "dream": ("has no causal decoder: dream.attention.causal is false", "dream"),
    "llama-no-vocab": ("has no vocabulary: tokenizer.ggml.model is no_vocab", "llama"),
}
MEMORYLESS = "is an encoder or an embedding model, without memory of earlier tokens"
BY_LLAMA_CPP: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("has an encoder", "t5", {}),
    "t5encoder": ("is an encoder", "t5encoder", {}),
    "bert": (MEMORYLESS, "bert", {"bert.attention.causal": None, "bert.pooling_type": None}),
    "gemma-embedding": (MEMORYLESS, "gemma-embedding", {"gemma-embedding.pooling_type": None}),
    "llada": ("is a diffusion model", "llada", {"llada.attention.causal": None}),
    "dream": ("is a diffusion model", "dream", {"dream.attention.causal": None}),
}


ENCODERS = {"bert", "nomic-bert", "gemma-embedding"}


def required(name: str) -> str:
    """What a refusal asks for. An encoder has an option."""
    return f"a model that generates text is required{', or --embeddings' if name in ENCODERS else ''}"


def refusal_of(path: object) -> list[str]:
    """Start a worker on the file. Returns its lines but the last, and the reason in the last one."""
    result = run("--model", str(path), "--port", str(free_port()), "--log-format", "json")
    *narrated, last = result.stderr.splitlines()
    assert (result.stdout, result.returncode) == ("", 1), result.stderr
    prefix = f"worker-orcd: MODEL_LOAD_FAILED: model file {path}: "
    assert last.startswith(prefix), result.stderr
    return [*narrated, last.removeprefix(prefix)]


@pytest.mark.parametrize("name", BY_METADATA)
def test_a_file_that_says_it_generates_no_text_is_refused_before_anything_is_loaded(
    tiny_models: TinyModels, name: str
) -> None:
    """One line, and no engine."""
    fault, architecture = BY_METADATA[name]
    line = f"{fault} (architecture {architecture}); {required(name)}"
    assert refusal_of(tiny_models.path(name)) == [line]


@pytest.mark.real
@pytest.mark.parametrize("name", BY_LLAMA_CPP)
def test_a_model_that_llama_cpp_knows_to_generate_no_text_is_refused_by_the_engine(
    tiny_models: TinyModels, name: str
) -> None:
    """It is loaded once and computes nothing; T5 would abort the process, and no debugger's dump is printed."""
    fault, architecture, metadata = BY_LLAMA_CPP[name]
    *narrated, last = refusal_of(tiny_models.path(name, **metadata))
    assert last == f"{fault} (architecture {architecture}); {required(name)}"
    assert all(line.startswith("{") for line in narrated)
    assert len([line for line in narrated if '"percent":0}' in line]) == 1
