"""Selects the device that computes a model: the CPU, or exactly one GPU without fallback.

Not yet run on a GPU. The tests cover every path that ends in a refusal, which needs no GPU.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_orcd.engine.model import ModelLoadError

_GPU_TYPES = (1, 2)
"""ggml_backend_dev_type: GPU and integrated GPU."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that computes a model.

    Attributes:
        used_bytes: returns how much of its memory came into use since it was chosen; 0 for the CPU.
        handle: ggml's `ggml_backend_dev_t`; None for the CPU.
    """

    name: str
    used_bytes: Callable[[], int]
    handle: int | None = None

    def as_list(self) -> "ctypes.Array[ctypes.c_void_p]":
        """The value of llama.cpp's `devices` parameter: the only GPUs that it may use, terminated by NULL.

        In llama.cpp's default list, integrated GPUs come last or are missing, so the same index could mean another
        GPU.
        """
        handles = () if self.handle is None else (self.handle,)
        return (ctypes.c_void_p * (len(handles) + 1))(*handles, None)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Free and total bytes of a GPU."""

    free: int
    total: int


def choose(lib: Any, gpu_device: int | None, weights: int, ggml: Any = None) -> Device:
    """The configured device. `gpu_device` counts ggml's GPUs, integrated ones included; `weights` is in bytes.

    Raises:
        ModelLoadError: this build cannot offload, or there is no such GPU (`MODEL_LOAD_FAILED`); the weights
            alone are larger than its free memory (`INSUFFICIENT_VRAM`).
    """
    if gpu_device is None:
        return Device("cpu", lambda: 0)
    if not lib.llama_supports_gpu_offload():
        raise ModelLoadError(
            f"--gpu-device {gpu_device}: required a llama.cpp build with GPU support, available is a CPU-only build "
            "(docs/gpu.md says how to build one)"
        )
    gpus = _gpus(ggml or _load_ggml(lib))
    if gpu_device >= len(gpus):
        raise ModelLoadError(
            f"--gpu-device {gpu_device}: required GPU {gpu_device}, available are {len(gpus)} GPUs"
        )
    handle, name, memory = gpus[gpu_device]
    before = memory()
    if weights > before.free:
        raise ModelLoadError(
            f"--gpu-device {gpu_device}: required {weights} bytes of VRAM for the weights alone, "
            f"available {before.free} of {before.total} bytes on {name}",
            "INSUFFICIENT_VRAM",
        )
    return Device(name, lambda: max(0, before.free - memory().free), handle)


def _load_ggml(lib: Any) -> Any:
    ggml = ctypes.CDLL(str(Path(lib.__file__).parent / "lib" / "libggml.so"))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return ggml


def _gpus(ggml: Any) -> list[tuple[int, str, Callable[[], GpuMemory]]]:
    """GPUs in ggml's order: handle, name, and a function that returns the memory."""

    def memory_of(device: int) -> Callable[[], GpuMemory]:
        def ask() -> GpuMemory:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            return GpuMemory(free.value, total.value)

        return ask

    devices = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    return [
        (device, ggml.ggml_backend_dev_name(device).decode(), memory_of(device))
        for device in devices
        if ggml.ggml_backend_dev_type(device) in _GPU_TYPES
    ]
