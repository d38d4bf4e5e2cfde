"""The whole worker except sockets, processes and llama.cpp, in one thread and in virtual time."""
