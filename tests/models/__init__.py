"""Models of every kind of memory, tiny ones made for the purpose, under stops, aborts and deaths (G15)."""
