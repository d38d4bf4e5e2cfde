"""Tests on the real model: slow, and the only ones that prove what users get."""
