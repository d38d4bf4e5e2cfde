"""The asyncio shell: passes the core's decisions to the engine and to readers, and engine messages to the core."""
