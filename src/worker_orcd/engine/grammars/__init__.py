"""Constrained output: grammars are compiled, and masks of allowed tokens computed, in processes of their own."""
