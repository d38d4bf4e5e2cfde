"""The engine process: one loop that owns the model. It handles sequences, not HTTP or clients."""
