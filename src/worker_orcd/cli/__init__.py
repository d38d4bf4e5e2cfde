"""The command line: `serve` (the default), `execute`, `cancel`, `ps`, `demo`."""
