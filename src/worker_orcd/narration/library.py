"""Imports structlog without rich. structlog imports rich if it is installed, which takes a tenth of a second per
process.

structlog uses rich only for tracebacks on terminals, which are not needed here.
"""

import sys

_UNWANTED = "rich"

if "structlog" not in sys.modules and _UNWANTED not in sys.modules:
    sys.modules[_UNWANTED] = None  # type: ignore[assignment]  # An import of it fails now, and structlog does without.
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules[_UNWANTED]
