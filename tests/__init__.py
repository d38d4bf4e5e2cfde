"""The proofs. One folder per kind: see `make help` for how to run them."""
