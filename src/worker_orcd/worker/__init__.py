"""The asyncio shell: carries the core's decisions to the engine and to the readers, and the engine's words back."""
