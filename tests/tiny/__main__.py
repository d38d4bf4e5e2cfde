"""`python -m tests.tiny FILE NAME [TYPE] [METADATA]`: write one tiny model.

TYPE is that of its matrices (`F32`, `Q8_0`), METADATA a JSON object of keys to replace. A process of its own, because
llama.cpp ends the process at metadata it does not expect, and logs to whoever asked last.
"""

import json
import sys
from pathlib import Path

from tests.tiny.gguf_file import write_model

if __name__ == "__main__":
    path, name, *rest = sys.argv[1:]
    kind = rest[0] if rest else "F32"
    more = json.loads(rest[1]) if len(rest) > 1 else {}
    write_model(name, Path(path), None if kind == "F32" else kind, **more)
