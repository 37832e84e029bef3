"""Execution and scheduling: decide, do, repeat."""
