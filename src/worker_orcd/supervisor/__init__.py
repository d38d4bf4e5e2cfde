"""Starts, monitors, kills and restarts the engine process, and defines the front's interface of an engine."""
