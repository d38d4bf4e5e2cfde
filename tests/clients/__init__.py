"""Clients that nobody here wrote, against a worker: they must get what they know, and their ways to stop must stop."""
