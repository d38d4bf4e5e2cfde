"""The entry point: `worker-orcd [COMMAND]`; without a command it serves."""
