"""The whole worker but sockets, processes and llama.cpp, in one thread and in virtual time."""
