"""Refuses models that have no causal decoder; `--embeddings` also allows encoders.

llama.cpp reports what a model is, so there is no list of architectures here. The front has already refused the files
whose metadata name an unsupported kind (`supervisor/model_file.py`). The `lib` argument is the `llama_cpp` module,
which only `llama.py` imports.
"""

from typing import Any

from worker_orcd.engine.model import ModelLoadError

_NO_VOCABULARY = 0
"""LLAMA_VOCAB_TYPE_NONE."""


class Memoryless(ModelLoadError):
    """The model keeps no earlier tokens in memory: it is an encoder."""


def require_decoder(lib: Any, model: Any, path: str, architecture: str) -> None:
    """Refuse a loaded model of an unsupported kind, before a context is made: some kinds crash when they compute.

    Raises:
        ModelLoadError: says what kind of model the file is.
    """
    kinds = (
        (lib.llama_vocab_type(lib.llama_model_get_vocab(model)) == _NO_VOCABULARY, "has no vocabulary"),
        (not lib.llama_model_has_decoder(model), "is an encoder"),
        (lib.llama_model_has_encoder(model), "has an encoder"),
        (lib.llama_model_is_diffusion(model), "is a diffusion model"),
    )
    for is_so, what in kinds:
        if is_so:
            raise _refusal(path, what, architecture)


def require_memory(memory: Any, path: str, architecture: str) -> None:
    """Refuse a model whose context has no memory of earlier tokens: encoders and embedding models.

    Raises:
        Memoryless: the context has no memory.
    """
    if not memory:
        what = "is an encoder or an embedding model, without memory of earlier tokens"
        raise Memoryless(f"{_refusal(path, what, architecture)}, or --embeddings")


def _refusal(path: str, what: str, architecture: str) -> ModelLoadError:
    return ModelLoadError(
        f"model file {path}: {what} (architecture {architecture}); a model that generates text is required"
    )
