"""Graph rewrites, one a file: pure functions from a stage to the next."""
