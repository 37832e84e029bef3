"""Metrics and access lines."""
