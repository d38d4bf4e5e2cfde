"""Searches: what must hold after any sequence of events, not just after the ones an author thought of."""
