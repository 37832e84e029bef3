"""Benchmarks: this engine and its peers in one run, on the same weights, with the ratio and the command recorded."""
