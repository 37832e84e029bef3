"""Constrained decoding: from a constraint to the tokens that may follow. See README.md."""
