"""The program language: traced to an IR, rewritten by passes, run by an executor over any engine. No torch."""
