"""Property tests: what must hold after any sequence of events."""
