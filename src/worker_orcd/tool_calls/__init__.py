"""Calls of tools: how models write them, how they are found in a model's output, and how a model is asked for them."""
