"""Which device is meant by an index (contract 1: `--gpu-device N`). ggml's list is a stand-in: no GPU is needed."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from worker_orcd.engine import devices
from worker_orcd.engine.model import ModelLoadError

CPU, GPU, INTEGRATED, ACCELERATOR = 0, 1, 2, 3
OFFLOADING = SimpleNamespace(llama_supports_gpu_offload=lambda: True)


class Ggml:
    """A machine with these devices, as (type, name, free bytes)."""

    def __init__(self, *found: tuple[int, str, int]) -> None:
        self._found = found

    def ggml_backend_dev_count(self) -> int:
        """How many there are."""
        return len(self._found)

    def ggml_backend_dev_get(self, index: int) -> int:
        """A handle."""
        return 0x1000 + index

    def ggml_backend_dev_type(self, handle: int) -> int:
        """CPU, GPU, ..."""
        return self._found[handle - 0x1000][0]

    def ggml_backend_dev_name(self, handle: int) -> bytes:
        """Its name."""
        return self._found[handle - 0x1000][1].encode()

    def ggml_backend_dev_memory(self, handle: int, free: Any, total: Any) -> None:
        """Its memory."""
        free._obj.value = total._obj.value = self._found[handle - 0x1000][2]


WEIGHTS = 100
"""Bytes."""
LAPTOP = Ggml((CPU, "CPU", 0), (INTEGRATED, "Vulkan0", 1000), (ACCELERATOR, "BLAS", 0), (GPU, "Vulkan1", 500))


@pytest.mark.parametrize(("index", "name", "handle"), [(0, "Vulkan0", 0x1001), (1, "Vulkan1", 0x1003)])
def test_an_index_means_the_same_gpu_to_llama_cpp(index: int, name: str, handle: int) -> None:
    """llama.cpp leaves integrated GPUs out of its own list where there are others: it gets the one GPU by handle."""
    device = devices.choose(OFFLOADING, index, WEIGHTS, LAPTOP)
    assert device.name == name
    assert list(device.as_list()) == [handle, None]


def test_the_cpu_means_no_gpu_at_all() -> None:
    """An empty list, not the default one, which has every GPU."""
    assert list(devices.choose(OFFLOADING, None, WEIGHTS, LAPTOP).as_list()) == [None]


@pytest.mark.parametrize(
    ("index", "weigh", "code", "words"),
    [
        (2, 100, "MODEL_LOAD_FAILED", "available are 2 GPUs"),
        (1, 501, "INSUFFICIENT_VRAM", "501 bytes of VRAM"),
    ],
)
def test_what_there_is_not_is_refused(index: int, weigh: int, code: str, words: str) -> None:
    """A GPU that does not exist is refused, and one with too little memory."""
    with pytest.raises(ModelLoadError, match=words) as caught:
        devices.choose(OFFLOADING, index, weigh, LAPTOP)
    assert caught.value.code == code


def test_memory_in_use_counts_from_the_choice() -> None:
    """Memory that other processes use on the GPU is not counted."""
    machine = Ggml((GPU, "CUDA0", 1000))
    device = devices.choose(OFFLOADING, 0, WEIGHTS, machine)
    machine._found = ((GPU, "CUDA0", 700),)
    assert device.used_bytes() == 300
    assert ctypes.sizeof(device.as_list()) == 2 * ctypes.sizeof(ctypes.c_void_p)
