"""The outside world: HTTP, text and observation. Never loads torch."""
