"""The documentation: its examples work, and its site is complete."""
