"""Only models that generate text with a causal decoder are served, and with `--embeddings` encoders, which don't.
Which ones they are is llama.cpp's word, not a list here.

What a file says by its own metadata the front has refused before (`supervisor/model_file.py`). `llama_cpp` comes in as
`lib`: only `llama.py` imports it.
"""

from typing import Any

from worker_orcd.engine.model import ModelLoadError

_NO_VOCABULARY = 0
"""LLAMA_VOCAB_TYPE_NONE."""


class Memoryless(ModelLoadError):
    """The model has no memory of earlier tokens: it is an encoder."""


def require_decoder(lib: Any, model: Any, path: str, architecture: str) -> None:
    """Refuse a loaded model by its kind, before it gets a context: some kinds end the process when they compute.

    Raises:
        ModelLoadError: what the file is.
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
        Memoryless: it has none.
    """
    if not memory:
        what = "is an encoder or an embedding model, without memory of earlier tokens"
        raise Memoryless(f"{_refusal(path, what, architecture)}, or --embeddings")


def _refusal(path: str, what: str, architecture: str) -> ModelLoadError:
    return ModelLoadError(
        f"model file {path}: {what} (architecture {architecture}); a model that generates text is required"
    )
