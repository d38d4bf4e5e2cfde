"""Write the GGUF file of a tiny model.

No tensor name or shape stands here: llama.cpp itself is asked (`llama_model_init_from_user` calls back with each tensor
that the hyperparameters ask for), so a new version of it needs at most a new key. Weights are scaled so that each
token depends on all tokens before it: a state that is corrupted shows in the text.
"""

import ctypes
import hashlib
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize

from tests.tiny.architectures import keys_of
from tests.tiny.vocabularies import Metadata

Weights = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
"""Tensor names and shapes in ggml's order, fastest dimension first."""

_ERROR_LEVEL = 3
_ROW = 32
"""Values of a row that share a scale when quantized."""
_UNQUANTIZED = re.compile(
    r"norm|ffn_gate_inp|ssm_conv1d|shortconv\.conv|time_mix_|channel_mix_|position_embd|token_types|attn_rel_b|altup"
    r"|laurel"
)
"""Tensors that llama.cpp's own quantizer leaves as they are."""


def write_model(name: str, path: Path, quantized: str | None = None, **more_keys: Any) -> None:
    """Write the model `name` to `path`.

    Args:
        name: one of `MODELS`.
        path: the file; it is replaced.
        quantized: the type of its matrices, such as "Q8_0"; None: all F32.
        more_keys: metadata to replace, by full names; None takes a key out.

    Raises:
        RuntimeError: llama.cpp refuses the metadata.
    """
    file_type = {"general.file_type": 7} if quantized == "Q8_0" else {}
    given = keys_of(name) | file_type | more_keys
    keys = {key: value for key, value in given.items() if value is not None}
    writer = _writer(path, keys)
    for tensor, shape in _tensors_of(keys).items():
        data = np.ascontiguousarray(_weights(tensor, shape), np.float32)
        if keys["general.architecture"] in ("exaone4", "gemma3n") and re.search(r"\.post_.*norm", tensor):
            # What a layer adds is small, or the layers multiply rounding until it is as large as the logits.
            data *= np.float32(0.3)
        matrix = data.ndim >= 2 and data.shape[-1] % _ROW == 0 and tensor.endswith(".weight")
        if quantized and matrix and not _UNQUANTIZED.search(tensor):
            kind = GGMLQuantizationType[quantized]
            writer.add_tensor(tensor, quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _writer(path: Path, keys: Metadata) -> GGUFWriter:
    writer = GGUFWriter(path, keys["general.architecture"])
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        kind, item = _kind(value), None
        if kind is GGUFValueType.ARRAY:
            # llama.cpp takes arrays of numbers by exact type.
            signed = key == "tokenizer.ggml.token_type" or key.endswith("dimension_sections")
            item = GGUFValueType.INT32 if signed else _kind(value[0])
        writer.add_key_value(key, value, kind, item)
    return writer


def _kind(value: object) -> GGUFValueType:
    kinds = (
        (bool, GGUFValueType.BOOL),
        (int, GGUFValueType.UINT32),
        (float, GGUFValueType.FLOAT32),
        (str, GGUFValueType.STRING),
        (list, GGUFValueType.ARRAY),
    )
    return next(kind for python, kind in kinds if isinstance(value, python))


class _Tensor(ctypes.Structure):
    """The beginning of ggml's `struct ggml_tensor`."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4))


class _GgufParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _tensors_of(keys: Metadata) -> Shapes:
    """The tensors that llama.cpp wants for this metadata."""
    native = Path(lib.__file__).parent / "lib"
    base = ctypes.CDLL(str(next(native.glob("libggml-base.so*"))))
    base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _GgufParams]
    found: Shapes = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
    def see(tensor: int, _user_data: object) -> None:
        found[base.ggml_get_name(tensor).decode()] = tuple(_Tensor.from_address(tensor).ne)

    errors: list[str] = []

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _user_data: object) -> None:
        if level >= _ERROR_LEVEL:
            errors.append(text.decode("utf-8", "replace"))

    lib.llama_log_set(listen, ctypes.c_void_p(0))
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.gguf"
        writer = _writer(path, keys)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        metadata = base.gguf_init_from_file(str(path).encode(), _GgufParams(True, None))
    llama = ctypes.CDLL(str(native / "libllama.so"))
    llama.llama_model_init_from_user.restype = ctypes.c_void_p
    llama.llama_model_init_from_user.argtypes = [
        ctypes.c_void_p,
        type(see),
        ctypes.c_void_p,
        lib.llama_model_params,
    ]
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_init_from_user(metadata, see, None, params)
    if not model:
        raise RuntimeError("llama.cpp refuses the metadata: " + "".join(errors[-3:]).strip())
    lib.llama_model_free(model)
    return found


def _weights(name: str, shape: tuple[int, ...]) -> Weights:
    """Random weights of a size that keeps activations near one and remembers what was read."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    dimensions = list(shape)
    while len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions.pop()
    size = dimensions[::-1]
    normal = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    weights = _state_space(name, normal)
    if weights is None:
        weights = _scaled(name, normal, dimensions)
    return np.asarray(weights, np.float32)


def _state_space(name: str, normal: Weights) -> Weights | None:
    """Weights that decide how long a recurrent state remembers; None for all others."""
    if re.search(r"ssm_a$|ssm_a\.", name):
        decay: Weights = -np.exp(normal * 0.7 - 1.0)
        return decay
    if re.search(r"ssm_dt\.bias|ssm_dt$", name):
        return normal * 0.3 - 1.5
    if "ssm_d" in name and normal.ndim <= 2 and "dt" not in name:
        return 1 + 0.1 * normal
    mixes = name.startswith("time_mix") or ".time_mix_" in name or ".channel_mix_" in name
    if mixes and not ("ln" in name and name.endswith(".weight")) and (normal.ndim == 1 or 1 in normal.shape):
        return 0.3 * normal + (0.4 if "lerp" in name else 0.0)
    return None


def _scaled(name: str, normal: Weights, dimensions: list[int]) -> Weights:
    last = name.rsplit(".", maxsplit=1)[-1]
    if "rope_freqs" in name or "rope_factors" in name:
        return np.ones_like(normal)
    if last == "weight" and ("norm" in name or ("mix_" in name and "ln" in name)):
        return 1 + 0.1 * normal
    if last == "bias" or len(dimensions) == 1:
        return 0.05 * normal
    if "token_embd.weight" in name:
        return 0.1 * normal
    if name == "output.weight":
        return normal * 2.5 / math.sqrt(dimensions[0])
    if "conv" in name:
        return 0.5 * normal
    return normal / math.sqrt(dimensions[0])
