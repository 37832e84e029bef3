"""Source to facts: symbols, signatures, fields, calls. Nothing is ever imported."""
