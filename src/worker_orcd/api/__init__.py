"""The HTTP API: one file for each resource. It contains only HTTP; the worker does the work."""
