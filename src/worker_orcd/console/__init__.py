"""The console: the page that a worker serves for people. Served by `api.console`."""
