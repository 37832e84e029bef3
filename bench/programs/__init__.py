"""Structured programs against plain client code, on a real server."""
