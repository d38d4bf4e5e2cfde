"""Starts, watches, kills and restarts the engine process; the engine as the front sees it."""
