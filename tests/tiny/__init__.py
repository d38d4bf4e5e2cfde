"""Tiny GGUF models with random weights, of any architecture that llama.cpp computes, made when a test wants one.

`tests.tiny.architectures.MODELS` names them. A test asks the fixture `tiny_models` for the file of one; it is made once
for each test session. The models are 10 to 70 MB as F32 and a quarter of that as Q8_0; a step of 512 rows takes 50 to
200 ms on two cores, long enough to be interrupted.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class TinyModels:
    """Files of tiny models, made when they are first wanted and kept in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, quantized: str = "Q8_0", **metadata: Any) -> Path:
        """The file of the model `name`.

        Args:
            name: one of `tests.tiny.architectures.MODELS`.
            quantized: the type of its matrices, `Q8_0` or `F32`.
            metadata: keys to replace, by full names; None takes one out.

        Raises:
            RuntimeError: llama.cpp refuses such a model.
        """
        wanted = json.dumps(metadata, sort_keys=True)
        mark = hashlib.sha256(wanted.encode()).hexdigest()[:8] if metadata else "plain"
        path = self._folder / f"{name}-{quantized}-{mark}.gguf"
        if not path.exists():
            partial = path.with_suffix(".partial")
            command = [sys.executable, "-m", "tests.tiny", str(partial), name, quantized, wanted]
            root = Path(__file__).parents[2]
            made = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
            if made.returncode != 0:
                raise RuntimeError(f"{name}: {made.stderr[-1000:]}")
            partial.rename(path)
        return path
