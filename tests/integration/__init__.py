"""The worker over HTTP, on the scripted engine."""
