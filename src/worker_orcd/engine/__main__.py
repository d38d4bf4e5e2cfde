"""Start the llama.cpp engine."""

import os

from worker_orcd.engine.encoder import load_model
from worker_orcd.engine.process import main

if __name__ == "__main__":
    # Without this, ggml runs a debugger on the crashing process for seconds. The failed assertion is printed anyway.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    main(load_model)
