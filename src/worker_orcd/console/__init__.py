"""The files of the console, the worker's web page. `api.console` serves them."""
