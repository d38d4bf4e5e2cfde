"""llama-cpp-python's bindings, without the rest of its package.

The package's `__init__` also imports a high-level library with a chat format for each model family, which would add a
quarter of a second to each start of an engine.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

_PACKAGE = "llama_cpp"


def bindings() -> Any:
    """The module with llama.cpp's C functions.

    Raises:
        ModuleNotFoundError: the extra `worker` is not installed.
    """
    if _PACKAGE not in sys.modules and (spec := find_spec(_PACKAGE)) is not None:
        sys.modules[_PACKAGE] = module_from_spec(spec)  # Does not run the package's `__init__`.
    return import_module(f"{_PACKAGE}.llama_cpp")
