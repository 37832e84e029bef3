"""A router in front of replicas: bytes in, bytes out, one answer a request."""
