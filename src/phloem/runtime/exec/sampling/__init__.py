"""Logits to tokens: adjustments, truncation, one seeded draw a row, log-probabilities. Start at sample.py."""
