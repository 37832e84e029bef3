"""Doing: the worker that applies plans. The only caller of compiled models and of the KV pool."""
