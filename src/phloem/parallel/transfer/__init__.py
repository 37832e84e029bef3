"""KV pages between replicas: messages, links, and what carries the bytes."""
