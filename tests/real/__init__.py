"""Tests on the real model: slow, and the only proof of what users get."""
