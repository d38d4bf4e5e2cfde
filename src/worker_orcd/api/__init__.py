"""HTTP: one file for each resource, and nothing but HTTP."""
