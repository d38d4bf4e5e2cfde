"""For tests of the worker and of its clients: a scripted engine without a model, and helpers to run a real worker."""
