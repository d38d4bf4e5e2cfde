"""Faults on real processes, again and again."""
