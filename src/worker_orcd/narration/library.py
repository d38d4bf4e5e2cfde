"""Imports structlog without rich, which structlog imports where it is installed: a tenth of a second in each process.

structlog's format for terminals can show tracebacks by rich. A log event is one line here, so it never does.
"""

import sys

_UNWANTED = "rich"

if "structlog" not in sys.modules and _UNWANTED not in sys.modules:
    sys.modules[_UNWANTED] = None  # type: ignore[assignment]  # An import of it fails now, and structlog does without.
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules[_UNWANTED]
