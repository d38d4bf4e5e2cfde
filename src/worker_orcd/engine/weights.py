"""A loaded model file: its weights on a device, and its metadata. The `lib` argument is the `llama_cpp` module, which
only `llama.py` and `encoder.py` import."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker_orcd.engine import devices
from worker_orcd.engine.backend_log import BackendLog
from worker_orcd.engine.memory_limit import loading_within
from worker_orcd.engine.model import ModelLoadError
from worker_orcd.protocol.messages import Load, Pooling

_POOLING: dict[str, Pooling] = {"1": "mean", "2": "cls", "3": "last"}
"""llama_pooling_type, as in a file's metadata."""


class Weights:
    """A `llama_model`."""

    def __init__(self, lib: Any, load: Load, progress: Callable[[float], None]) -> None:
        """Load the weights.

        Args:
            lib: `llama_cpp`'s low-level API.
            load: which model and how.
            progress: called with the percentage that is loaded, after each tensor.

        Raises:
            ModelLoadError: with llama.cpp's reason, if it logs one.
        """
        self._lib = lib
        self.backend_log = BackendLog(lib)
        lib.llama_backend_init()
        self.device = devices.choose(lib, load.gpu_device, load.model_bytes)
        self.model = self._load(load, progress)
        self.architecture = self.text("general.architecture")
        own = _POOLING.get(self.text(f"{self.architecture}.pooling_type"), "none")
        self.pooling: Pooling = load.pooling or own

    def text(self, key: str) -> str:
        """A metadata value as text, "" if there is none."""
        buffer = ctypes.create_string_buffer(256)
        length = self._lib.llama_model_meta_val_str(self.model, key.encode(), buffer, 256)
        return buffer.value.decode("utf-8", "replace") if length > 0 else ""

    def same_positions(self, cells: int, others: int) -> bool:
        """Whether contexts of so many cells compute the same at the same positions. LongRoPE has factors for contexts
        up to the original length, and others for longer ones."""
        scaling = f"{self.architecture}.rope.scaling"
        original = int(self.text(f"{scaling}.original_context_length") or 0)
        if not original and self.text(f"{scaling}.type") == "longrope":
            original = int(self._lib.llama_model_n_ctx_train(self.model))
        return not original or (cells > original) == (others > original)

    @property
    def quant_kind(self) -> str:
        """The quantization, such as `Q4_1`, from llama.cpp's description `llama 135M Q4_1`."""
        buffer = ctypes.create_string_buffer(128)
        self._lib.llama_model_desc(self.model, buffer, 128)
        return buffer.value.decode("utf-8", "replace").split(" ", 2)[-1]

    def _load(self, load: Load, progress: Callable[[float], None]) -> Any:
        lib = self._lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0 if load.gpu_device is None else 2**31 - 1
        params.split_mode = lib.LLAMA_SPLIT_MODE_NONE
        gpus = self.device.as_list()
        params.devices = ctypes.cast(gpus, ctypes.c_void_p)
        params.main_gpu = 0

        def loaded(part: float, _user_data: object) -> bool:
            progress(min(99.0, part * 100))  # 100 is reported when the context is ready.
            return True

        callback = lib.llama_progress_callback(loaded)
        params.progress_callback = callback
        size = max(load.model_bytes, Path(load.model_path).stat().st_size)
        # No limit with a GPU, because its driver allocates memory, too.
        bound = loading_within(size) if load.gpu_device is None else contextlib.nullcontext()
        with bound:
            model = lib.llama_model_load_from_file(load.model_path.encode(), params)
        if not model:
            on_gpu = load.gpu_device is not None
            code = "INSUFFICIENT_VRAM" if on_gpu and self.backend_log.about_memory() else "MODEL_LOAD_FAILED"
            raise ModelLoadError(
                f"model file {load.model_path}: llama.cpp cannot load it: {self.backend_log.last()}", code
            )
        return model
