"""The OpenAI-compatible API: other words for the same jobs, made and stopped as everywhere."""
