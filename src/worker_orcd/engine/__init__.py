"""The engine process: one loop that owns the model. It knows sequences and nothing about HTTP or clients."""
