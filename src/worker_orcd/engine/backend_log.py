"""Errors that llama.cpp logs. The `lib` argument is the `llama_cpp` module, which only `llama.py` imports."""

import ctypes
from typing import Any


class BackendLog:
    """Keeps the errors that llama.cpp logs, to explain a failed load. Drops everything else that it logs."""

    def __init__(self, lib: Any) -> None:
        self._lines: list[str] = []
        self._callback = lib.llama_log_callback(self._hear)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _hear(self, level: int, text: bytes, _user_data: object) -> None:
        if level == 4 and len(self._lines) < 20:  # GGML_LOG_LEVEL_ERROR
            self._lines.append(text.decode("utf-8", "replace").strip())

    def last(self) -> str:
        """The first error. It names the cause; later errors are consequences."""
        return self._lines[0] if self._lines else "it gives no reason"

    def about_memory(self) -> bool:
        """Whether an allocation failed."""
        return any("memory" in line or "alloc" in line for line in self._lines)
