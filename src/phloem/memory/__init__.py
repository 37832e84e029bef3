"""KV cache and memory: which page belongs to whom, and the bytes."""
