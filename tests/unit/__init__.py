"""Pure code, one module at a time: no sockets, no processes, no real model but for its file."""
