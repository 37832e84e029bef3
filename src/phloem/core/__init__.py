"""Vocabulary: the values every other package speaks in. Standard library, numpy and msgspec only; no torch, no I/O."""
