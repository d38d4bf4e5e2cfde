"""For tests, ours and yours: a scripted engine without a model, and helpers to run a real worker."""
