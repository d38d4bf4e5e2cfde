"""Constrained output: separate processes compile grammars and compute the masks of allowed tokens."""
