"""Start the llama.cpp engine."""

import os

from worker_orcd.engine.encoder import load_model
from worker_orcd.engine.process import main

if __name__ == "__main__":
    # Otherwise ggml runs a debugger on the dying process, for seconds. What it asserted is printed anyway.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    main(load_model)
