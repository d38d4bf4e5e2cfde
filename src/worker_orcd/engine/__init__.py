"""The engine process: one loop that owns the model. It handles sequences, not HTTP or clients."""

import os

# numpy's own compute threads are of no use here, and starting them costs a third of the time of all imports.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
