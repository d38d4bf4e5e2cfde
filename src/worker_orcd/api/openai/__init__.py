"""The OpenAI-compatible API over the same jobs."""
