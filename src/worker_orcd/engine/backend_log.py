"""The errors that llama.cpp logs. `llama_cpp` comes in as `lib`: only `llama.py` gets it."""

import ctypes
from typing import Any


class BackendLog:
    """What llama.cpp logs as errors, kept to explain a failed load; everything else it logs is dropped."""

    def __init__(self, lib: Any) -> None:
        self._lines: list[str] = []
        self._callback = lib.llama_log_callback(self._hear)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _hear(self, level: int, text: bytes, _user_data: object) -> None:
        if level == 4 and len(self._lines) < 20:  # GGML_LOG_LEVEL_ERROR
            self._lines.append(text.decode("utf-8", "replace").strip())

    def last(self) -> str:
        """The first error, which names the cause; those after it follow from it."""
        return self._lines[0] if self._lines else "it gives no reason"

    def about_memory(self) -> bool:
        """Whether an allocation failed."""
        return any("memory" in line or "alloc" in line for line in self._lines)
