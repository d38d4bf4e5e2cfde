"""Tests of pure code, one module at a time: no sockets, no processes, and of the real model only its file."""
